"""Define what all settings of a run share: the base class, and ranges of numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Read a section of a YAML file; unknown names and infinite values are refused, changes too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
