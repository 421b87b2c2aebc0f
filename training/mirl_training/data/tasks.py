"""Name the tasks that need no recipe: MIR-L's, and those of this project's first networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from mirl_training.data.degradations import (
    Image,
    add_fog,
    add_jpeg,
    add_jpeg_drawn,
    add_noise,
    add_rain,
    share,
)


def _noise(image: Image, rng: np.random.Generator, *, sigma: float) -> Image:
    return add_noise(image, sigma, rng)


def _strong_jpeg(image: Image, rng: np.random.Generator) -> Image:
    return add_jpeg(image, 10)


_DEGRADATIONS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "noise15": partial(_noise, sigma=15),
    "noise25": partial(_noise, sigma=25),
    "noise50": partial(_noise, sigma=50),
    "rain": add_rain,
    "fog": add_fog,
    "jpeg": add_jpeg_drawn,
    "jpeg10": _strong_jpeg,
    "social": share,
}
TASKS = (*_DEGRADATIONS, "haze")  # "haze" has pairs alone


def degrade(clean: Image, task: str, rng: np.random.Generator) -> Image:
    """Return a clean photo (H, W, 3) in [0, 1] with the degradation of a task.

    Args:
        clean: The photo, float32 RGB.
        task: One of `TASKS` but "haze".
        rng: Source of the draw.
    """
    return _DEGRADATIONS[task](clean, rng)
