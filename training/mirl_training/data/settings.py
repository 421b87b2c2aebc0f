"""Define the section ``data`` of a run's YAML file."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from mirl_training.data.recipes import Recipe, SourceName
from mirl_training.data.tasks import TASKS
from mirl_training.settings import Positive, Settings


def _to_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else () if value is None else value


Folders = Annotated[tuple[str, ...], BeforeValidator(_to_tuple)]


class DataSettings(Settings):
    """Say where the photos are and how tasks are mixed.

    Folders are relative to the root that the command is given; each setting takes one or more. A task is a
    recipe, by its name, or one of `TASKS`: "noise15", "noise25" and "noise50" are MIR-L's. "haze" draws from
    the pairs of ``haze``. "rain" draws from those of ``rain``, or puts streaks over clean photos where there
    are none. "fog" puts haze over clean photos, "jpeg" compresses them ("jpeg10" always with quality 10), and
    "social" does what sharing a photo again and again does.

    Attributes:
        clean: Folders of photos.
        rain: Folders of pairs, ``input/NAME_rainy.*`` and ``target/NAME_gt.*``.
        haze: Folders of pairs, ``input/NAME_hazy.*`` and ``target/NAME_gt.*``.
        real: Folders of pairs with the noise of cameras, ``input/NAME_noisy.*`` and ``target/NAME_gt.*``.
        recipes: Recipes by which photos are degraded, by the recipe's name.
        tasks: The odds of each task in a batch; where training counts ``epochs``, how often each photo of the
            task is seen in one epoch.
        validation_images: Number of images of each kind, the last ones, that are held back for validation.
        memory: GiB that decoded photos take at most; the others are decoded when they are drawn.
    """

    clean: Folders = Field(min_length=1)
    rain: Folders = ()
    haze: Folders = ()
    real: Folders = ()
    recipes: dict[str, Recipe] = Field(default_factory=dict)
    tasks: dict[str, Positive] = Field(min_length=1)
    validation_images: Positive = 6
    memory: Annotated[float, Field(ge=0)] = 4

    @model_validator(mode="after")
    def _tasks_are_known(self) -> DataSettings:
        if both := sorted(self.recipes.keys() & set(TASKS)):
            raise ValueError(f"recipes has {both[0]!r}, which is a task of its own; expected another name")
        for task in self.tasks:
            if task not in self.recipes and task not in TASKS:
                known = ", ".join((*self.recipes, *TASKS))
                raise ValueError(f"tasks asks for {task!r}; expected one of {known}")
            source = self.source_of(task)
            if not getattr(self, source):
                raise ValueError(f"tasks asks for {task!r}, but {source} names no folder")
        return self

    def source_of(self, task: str) -> SourceName:
        """Return which folders a task draws from; "haze" has pairs alone, "rain" where there are any."""
        if task in self.recipes:
            return self.recipes[task].source
        return "haze" if task == "haze" else "rain" if task == "rain" and self.rain else "clean"
