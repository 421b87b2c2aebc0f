"""Pad images to the sizes that a network takes."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_axis(image: Tensor, axis: int, padded: int) -> Tensor:
    """Return an image whose axis is padded behind, by reflection, to a length; a single pixel is repeated.

    The lengths may be symbols of torch.export.
    """
    period = torch.full((), 2 * (image.shape[axis] - 1), device=image.device).clamp(min=1)
    index = torch.arange(padded, device=image.device) % period
    return image.index_select(axis, torch.minimum(index, period - index))


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad an image at the bottom and at the right, by reflection, to sides that are multiples of a number.

    Unlike `torch.nn.functional.pad`, it reflects as often as needed, so any size from 1x1 will do; a single
    pixel is repeated.

    Args:
        image: (B, C, H, W).
        multiple: Number that the sides of the result are multiples of.

    Returns:
        A contiguous tensor. It is ``image`` itself if that is contiguous and needs no padding.

    Examples:
        >>> pad_to_multiple(torch.tensor([[[[1.0, 2.0, 3.0]]]]), 4).tolist()[0][0][0]
        [1.0, 2.0, 3.0, 2.0]
    """
    height, width = (-(-length // multiple) * multiple for length in image.shape[2:])
    return pad_to_size(image, height, width)


def pad_to_size(image: Tensor, height: int, width: int) -> Tensor:
    """Pad an image as `pad_to_multiple` does, to a size.

    Args:
        image: (B, C, H, W).
        height: Height of the result, H or more.
        width: Width of the result, W or more.
    """
    for axis, padded in ((2, height), (3, width)):
        length = image.shape[axis]
        if length != padded:
            image = pad_axis(image, axis, padded)
    return image.contiguous()
