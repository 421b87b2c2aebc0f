"""Photographs of scikit-image, degraded: what the demo restores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage import data

from mirl_training.data.degradations import add_haze, add_noise, add_rain

Pixels = NDArray[np.uint8]
CROP = 16  # as test images are


@dataclass(frozen=True)
class Scene:
    """A photo before and after it was harmed."""

    name: str
    what: str
    degraded: Pixels
    clean: Pixels


def scenes() -> Iterator[Scene]:
    """A noisy, a rainy and a hazy photo; the same ones every time."""
    rng = np.random.default_rng(0)

    def scene(name: str, what: str, clean: NDArray[np.float32], degraded: NDArray[np.float32]) -> Scene:
        height, width = (side // CROP * CROP for side in clean.shape[:2])
        return Scene(
            name, what, *(np.rint(x[:height, :width] * 255).astype(np.uint8) for x in (degraded, clean))
        )

    astronaut, chelsea = (photo.astype(np.float32) / 255 for photo in (data.astronaut(), data.chelsea()))
    yield scene("noisy", "noise, sigma 50", astronaut, add_noise(astronaut, 50, rng))
    yield scene("rainy", "rain streaks", chelsea, add_rain(chelsea, rng, 24.0))
    left, _, disparity = data.stereo_motorcycle()
    motorcycle = left.astype(np.float32) / 255
    # The stereo pair's measured disparity, the farthest value where it has none; depth is its inverse, 1 at the median.
    seen = np.isfinite(disparity) & (disparity > 0)
    depth = np.median(disparity[seen]) / np.where(seen, disparity, np.percentile(disparity[seen], 5))
    yield scene("hazy", "haze by measured depth", motorcycle, add_haze(motorcycle, depth, 0.4, 0.8))
