"""The settings of a run: a YAML file, checked before anything is read or trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mirl_sparse.network import ConfigError, PromptIRConfig

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Settings):
    """Where the photos are, relative to the root given to the command, and how tasks are mixed.

    ``clean`` is a folder of photos; ``haze`` one with ``input/NAME_hazy.*`` and
    ``target/NAME_gt.*``. ``tasks`` are the odds of each task in a batch: "haze" draws from those pairs,
    "fog" hazes the clean photos, "jpeg" compresses them and "social" does what sharing a photo again and again does. The last ``validation_images`` of each folder are kept for validation.
    """

    clean: str
    haze: str | None = None
    tasks: dict[Literal["noise15", "noise25", "noise50", "rain", "haze", "fog", "jpeg", "social"], Positive] = Field(
        min_length=1
    )
    validation_images: Positive = 6


class TrainingSettings(_Settings):
    """Optimisation of one round: AdamW on the L1 loss, linear warm-up, then half a cosine."""

    steps: Positive
    batch_size: Positive = 8
    patch_size: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    validate_every: Positive = 1000
    save_every: Positive = 500
    seed: int = 0


class PruningSettings(_Settings):
    """Iterative magnitude pruning (Frankle & Carbin, ICLR 2019; MIR-L, section 3).

    Each of ``rounds`` removes ``rate`` of the weights that the round before left, so that
    (1 - rate)^rounds remain, then trains ``round_steps`` (the last one ``final_steps``).
    ``rewind`` puts the survivors back to their initial values, to those after the given step of
    round 0, or leaves them as trained ("none": gradual pruning). Tensors whose name matches an
    ``exempt`` pattern (shell wildcards) keep every weight, but count in the density.

    The criterion ``latency`` has no rate but a goal: after the last round the network is to restore ``speedup`` times as
    fast as the first one, by the cost model of the machine that the run began on; each round takes its part of that.
    """

    criterion: Literal["global", "layerwise", "lamp", "latency"] = "global"
    rate: Fraction = 0.2
    speedup: Annotated[float, Field(gt=1)] | None = None
    rounds: Annotated[int, Field(ge=0)] = 10
    round_steps: Positive | None = None
    final_steps: Positive | None = None
    rewind: Literal["initial", "none"] | Positive = "initial"
    exempt: tuple[str, ...] = ()


class RunConfig(_Settings):
    """One run: the network, the data, how a round trains, and how the rounds prune.

    Either ``network`` describes a new one, or ``start`` names a checkpoint, a ticket file or a shipped
    ticket whose weights are trained further; its zeros stay, and count in the density.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    network: PromptIRConfig | None = None
    start: str | None = None
    data: DataSettings
    training: TrainingSettings
    pruning: PruningSettings = PruningSettings()

    @field_validator("network", mode="before")
    @classmethod
    def _network(cls, value: Any) -> PromptIRConfig | None:
        return value if value is None or isinstance(value, PromptIRConfig) else PromptIRConfig.from_dict(value)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if (self.network is None) == (self.start is None):
            raise ConfigError("expected either network (a new one) or start (a checkpoint or ticket to go on from)")
        if "haze" in self.data.tasks and self.data.haze is None:
            raise ConfigError("data.tasks asks for haze, but data.haze names no folder")
        if (self.pruning.criterion == "latency") != (self.pruning.speedup is not None):
            raise ConfigError(
                f"pruning.criterion is {self.pruning.criterion} and pruning.speedup {self.pruning.speedup}; expected a speedup"
                " with the criterion latency, and with no other"
            )
        if isinstance(self.pruning.rewind, int) and self.pruning.rewind > self.training.steps:
            raise ConfigError(
                f"pruning.rewind is step {self.pruning.rewind}; expected at most training.steps ({self.training.steps})"
            )
        return self

    def steps_of_round(self, index: int) -> int:
        """How many steps round ``index`` trains; round 0 is the dense one."""
        p = self.pruning
        steps = self.training.steps
        if index > 0:
            steps = p.round_steps or steps
            if index == p.rounds:
                steps = p.final_steps or steps
        return steps

    def to_dict(self) -> dict[str, Any]:
        """As read from YAML, defaults filled in; equal runs have equal dictionaries."""
        network = self.network.to_dict() if self.network else None
        return self.model_dump(mode="json", exclude={"network"}) | {"network": network}

    @property
    def digest(self) -> str:
        """Eight digits that tell runs of other settings apart."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:8]


def load_config(path: Path) -> RunConfig:
    """Read a run's YAML file; ConfigError says in one line what is wrong with it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}; expected settings such as network, data, training")
    try:
        return RunConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "config"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from None
