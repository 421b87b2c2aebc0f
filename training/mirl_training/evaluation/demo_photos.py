"""Degrade photographs of scikit-image: what the demo restores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage import data

from mirl_sparse.defaults import HAZE_TICKET, TICKET
from mirl_training.data.degradations import (
    Image,
    add_camera_noise,
    add_haze,
    add_jpeg,
    add_noise,
    add_rain,
)
from mirl_training.evaluation.metrics import CROP, Pixels, to_levels


@dataclass(frozen=True)
class DemoPhoto:
    """Hold a photo before and after it was degraded.

    Attributes:
        name: A word for file names.
        description: Words for the degradation; "nothing" for a clean photo, which should stay as it is.
        degraded: (H, W, 3) uint8.
        clean: (H, W, 3) uint8.
        ticket: The shipped ticket for such photos.
        is_timed: True lets the demo time dense beside sparse on it, which takes half a minute.
    """

    name: str
    description: str
    degraded: Pixels
    clean: Pixels
    ticket: str = TICKET
    is_timed: bool = True


def demo_photos() -> Iterator[DemoPhoto]:
    """Yield a noisy, a rainy, a hazy, a noisy grey and a clean photo; the same ones every time."""
    rng = np.random.default_rng(0)
    astronaut, chelsea, coffee = (
        photo.astype(np.float32) / 255 for photo in (data.astronaut(), data.chelsea(), data.coffee())
    )
    yield _photo("noisy", "noise, sigma 50", astronaut, add_noise(astronaut, 50, rng))
    yield _photo("rainy", "rain streaks", chelsea, add_rain(chelsea, rng, 24.0))
    motorcycle, depth = _motorcycle()
    hazy = add_haze(motorcycle, depth, 0.4, 0.8)
    yield _photo("hazy", "haze by measured depth", motorcycle, hazy, ticket=HAZE_TICKET)
    camera = np.repeat(data.camera()[..., None].astype(np.float32) / 255, 3, axis=2)
    noisy_camera = add_jpeg(add_camera_noise(camera, 15, "common", 0, rng), 90)
    yield _photo("grey", "grey, noise 15, JPEG 90", camera, noisy_camera, is_timed=False)
    yield _photo("clean", "nothing", coffee, coffee, is_timed=False)


def _photo(name: str, description: str, clean: Image, degraded: Image, **more: Any) -> DemoPhoto:
    height, width = (side // CROP * CROP for side in clean.shape[:2])
    before, after = (to_levels(x[:height, :width]) for x in (degraded, clean))
    return DemoPhoto(name, description, before, after, **more)


def _motorcycle() -> tuple[Image, NDArray[np.floating]]:
    """Return a photo and its depth (H, W), the inverse of the measured disparity, 1 at the median."""
    photo, _, disparity = data.stereo_motorcycle()
    measured = np.isfinite(disparity) & (disparity > 0)
    # Where none was measured, the farthest.
    filled = np.where(measured, disparity, np.percentile(disparity[measured], 5))
    return photo.astype(np.float32) / 255, np.median(disparity[measured]) / filled
