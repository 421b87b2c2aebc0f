"""Scale pixels of any type to 8 or 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mirl_sparse.photos.photo import DeepPixels, ImageError

_NEARLY_ALL = 0.99  # of the values of an image
_HIGHLIGHTS = 16  # times white: as far as those of HDR images usually reach
_OVERSHOOT = 1.25  # times white: as far as sharpening and resampling reach
_UNDERSHOOT = -0.05  # of white: the same below black


def full_scale(values: NDArray[Any], name: str) -> float:
    """Return what counts as white where a file does not say it.

    Signed integers of 8 bits reach 127; those of 16 bits 255 or 32767; others 255, 65535 or their largest
    value. Floats reach 1, 255, 65535 or their largest value. Each time the first is taken that fits, by the
    value that 99% of all do not exceed. It may lie 25% above white, as resampling leaves it, and for a white
    of 1 even 16 times above, as highlights of HDR images do, unless all floats are whole numbers (a dark
    image of 0..255). What is brighter than white is clipped, and so is what lies little below black.

    Args:
        values: Colours, or alpha, of an image.
        name: The image, as messages name it.

    Raises:
        ImageError: More than 1% of the values lie below 0 by more than 5% of white; integers: any.
    """
    is_float = values.dtype.kind == "f"
    finite = values[np.isfinite(values)] if is_float else values
    if not finite.size:
        return 1
    if not is_float and finite.min() < 0:
        _refuse(name, finite.min())
    least, most = (float(q) for q in np.quantile(finite, (1 - _NEARLY_ALL, _NEARLY_ALL)))
    full = next(
        (white for white, limit in _whites(finite) if most <= limit * white), max(float(finite.max()), 1.0)
    )
    if least < _UNDERSHOOT * full:
        _refuse(name, finite.min())
    return full


def _whites(values: NDArray[Any]) -> list[tuple[float, float]]:
    """Return the usual values of white, with the factor by which values may exceed them."""
    if values.dtype.kind != "f":
        usual = {1: [127.0], 2: [255.0, 32_767.0]}.get(values.dtype.itemsize, [255.0, 65_535.0])
        return [(white, _OVERSHOOT) for white in usual]
    is_whole = values.max() > 1 and bool((values == np.rint(values)).all())
    return [(1.0, 1.0 if is_whole else _HIGHLIGHTS), (255.0, _OVERSHOOT), (65_535.0, _OVERSHOOT)]


def _refuse(name: str, least: float) -> None:
    raise ImageError(f"{name}: holds values down to {least:.6g}; expected 0 or more, add an offset")


def scaled(values: NDArray[Any], full: float, top: int) -> DeepPixels:
    """Return values of 0..``full`` as uint8 or uint16 of 0..``top``; others are clipped, NaN is black."""
    dtype = np.uint8 if top == 255 else np.uint16
    if values.dtype.kind == "u" and full == top:
        return np.array(values, dtype, order="C")
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=full, neginf=0.0)
    return np.rint(finite.clip(0, full) * (top / full)).astype(dtype)


def divided_by_alpha(pixels: DeepPixels, alpha: DeepPixels) -> DeepPixels:
    """Return colours (H, W, C) that were multiplied by their alpha (H, W) as they were before."""
    top = np.iinfo(pixels.dtype).max
    straight = pixels.astype(np.float32) * (top / np.maximum(alpha, 1).astype(np.float32))[..., None]
    return np.rint(straight.clip(0, top)).astype(pixels.dtype)
