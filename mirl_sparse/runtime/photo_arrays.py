"""Restore photos as arrays of whole numbers by a network of tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mirl_sparse.errors import UserError
from mirl_sparse.photos import read_image, to_rgb

_IMAGES = "a path, a PIL image or a uint8 or uint16 array (H, W, 3)"
PhotoLike = str | Path | Image.Image | NDArray[Any]


def restore_photo(image: PhotoLike, strength: float, restore: Callable[[Tensor], Tensor]) -> NDArray[Any]:
    """Restore a photo.

    Args:
        image: A path, a PIL image, or an array (H, W, 3), RGB, uint8 or uint16.
        strength: Share of the restored photo in the result, 0 to 1. The rest is the photo as it was; where
            the result is larger, the photo is enlarged by bicubic interpolation.
        restore: Takes (1, 3, H, W) float32 in [0, 1] and gives (1, 3, s * H, s * W).

    Returns:
        An array (s * H, s * W, 3), RGB: uint16 for an array of uint16, else uint8.

    Raises:
        UserError: If the image is something else, its file cannot be read, or the strength is no share.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"strength is {strength}; expected 0 (leave the photo as it is) to 1")
    array = _rgb_array(image)
    top = np.iinfo(array.dtype).max
    x = torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32, "C")).div_(top)[None]
    y = restore(x)
    if strength < 1:
        if y.shape != x.shape:
            x = F.interpolate(x, y.shape[2:], mode="bicubic")
        y = y.cpu().mul_(strength).add_(x, alpha=1 - strength)
    y = y[0].clamp(0, 1).mul_(top).round_().permute(1, 2, 0).cpu()
    return y.numpy().astype(array.dtype, "C")


def _rgb_array(image: PhotoLike) -> NDArray[Any]:
    """Return an image as an array (H, W, 3) of uint8, or of uint16 if it is one."""
    if isinstance(image, (str, Path)):
        image = read_image(image)
    elif isinstance(image, Image.Image):
        image = to_rgb(image)
    if not isinstance(image, np.ndarray):
        raise UserError(f"image is {type(image).__name__}; expected {_IMAGES}")
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"image is {image.dtype} {image.shape}; expected {_IMAGES}")
    return image
