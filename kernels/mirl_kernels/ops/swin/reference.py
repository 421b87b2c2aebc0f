"""Define the block of Swin transformers (ICCV 2021, figure 3b), as SwinIR, SCUNet and Uformer use it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def swin(
    x: Tensor,
    norms: Sequence[tuple[Tensor, Tensor, float]],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    position: Tensor,
    *,
    window: int,
    shift: int = 0,
    masked: float = -100.0,
    modulator: Tensor | None = None,
) -> Tensor:
    """Return ``y + fc2(GELU(fc1(norm2(y))))``, where ``y = x + project(attention(norm1(x)))``, or only y.

    Every pixel attends to those of its window. With a shift, windows begin that many pixels from the top and
    the left. The rows and columns before them are joined to the other end of the image, where they share
    windows with pixels that they do not attend to.

    Args:
        x: (B, H, W, C); H and W are multiples of the window.
        norms: Gain (C,), bias (C,) and epsilon of both norms; of the first one for y.
        weights: Those of qkv (3C, C), project (C, C), fc1 (h, C) and fc2 (C, h); the first two for y. Rows of
            qkv: q of all heads, k of all heads, v of all heads.
        biases: Those of the same layers, or None for each.
        position: (heads, window^2, window^2), added to the logits of queries and keys.
        window: Side of a window.
        shift: Where windows begin, 0 to window - 1.
        masked: Added to the logits of pixels that do not attend to each other.
        modulator: (window^2, C), added to the first norm of each window (Uformer, CVPR 2022); None for
            nothing.

    Returns:
        (B, H, W, C).
    """
    qkv, project, *feed_forward = zip(weights, biases, strict=True)
    heads, (height, width, channels) = len(position), x.shape[1:]
    windows = _windows(F.layer_norm(x, (channels,), *norms[0]), window, shift)
    windows = windows if modulator is None else windows + modulator
    q, k, v = F.linear(windows, *qkv).unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    logits = q * (channels // heads) ** -0.5 @ k.transpose(-2, -1) + position
    if shift:
        apart = do_not_attend(height, width, window, shift)[:, None]
        logits = torch.where(apart, logits + masked, logits)
    attended = (logits.softmax(-1) @ v).transpose(2, 3).flatten(3)
    joined = F.linear(attended, *project).unflatten(2, (window, window)).unflatten(1, (height // window, -1))
    y = x + joined.transpose(2, 3).reshape(x.shape).roll((shift, shift), (1, 2))
    if not feed_forward:
        return y
    fc1, fc2 = feed_forward
    return y + F.linear(F.gelu(F.linear(F.layer_norm(y, (channels,), *norms[1]), *fc1)), *fc2)


def do_not_attend(height: int, width: int, window: int, shift: int) -> Tensor:
    """Return which pixels of a window do not attend to each other, (windows, window^2, window^2) bool.

    Args:
        height: Rows of the image, a multiple of the window.
        width: Pixels of a row, likewise.
        window: Side of a window.
        shift: Where windows begin.
    """
    rows, columns = (torch.arange(side) >= side - shift for side in (height, width))  # those joined on
    region = _windows((2 * rows[:, None] + columns)[None, :, :, None], window, 0)[0, :, :, 0]
    return region[:, :, None] != region[:, None]


def _windows(x: Tensor, window: int, shift: int) -> Tensor:
    """Return (B, H, W, C) cut into windows, (B, windows, window^2, C)."""
    rows = x.roll((-shift, -shift), (1, 2)).unflatten(1, (-1, window))
    return rows.unflatten(3, (-1, window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
