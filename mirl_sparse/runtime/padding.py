"""Pad images to the sizes that a network takes."""

from __future__ import annotations

import torch
from torch import Tensor


def _reflected_indices(length: int, padded: int, device: torch.device) -> Tensor:
    """Return the indices 0 .. padded - 1 reflected into [0, length)."""
    index = torch.arange(padded, device=device)
    if length == 1:
        return torch.zeros_like(index)
    period = 2 * (length - 1)
    index = index % period
    return torch.minimum(index, period - index)


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
    for axis in (2, 3):
        length = image.shape[axis]
        if length % multiple:
            padded = -(-length // multiple) * multiple
            image = image.index_select(axis, _reflected_indices(length, padded, image.device))
    return image.contiguous()
