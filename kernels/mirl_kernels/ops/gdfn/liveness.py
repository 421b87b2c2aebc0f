"""Find the hidden channels of a GDFN that reach its output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def live_after_taps(
    pointwise: Tensor, dwconv: Tensor, bias: Tensor | None, tap_bias: Tensor | None
) -> Tensor:
    """Return which channels of a 1x1 and a depthwise convolution are not zero everywhere.

    Args:
        pointwise: Weight of the 1x1 convolution, (channels, C, ...).
        dwconv: Weight of the depthwise convolution, (channels, 1, 3, 3) or (channels, 9).
        bias: Bias of the 1x1 convolution, (channels,), or None.
        tap_bias: Bias of the depthwise convolution, (channels,), or None.

    Returns:
        (channels,) bool.
    """
    fed, tapped = (pointwise.flatten(1) != 0).any(1), (dwconv.flatten(1) != 0).any(1)
    fed = fed if bias is None else fed | (bias != 0)
    return fed & tapped if tap_bias is None else fed & tapped | (tap_bias != 0)


def live_pairs(
    project_in: Tensor,
    dwconv: Tensor,
    project_out: Tensor,
    biases: Sequence[Tensor | None] = (None, None, None),
) -> Tensor:
    """Return the pairs of hidden channels that reach the output.

    A pair is dead when either half is zero (GELU(0) = 0), or when no output reads it.

    Args:
        project_in: (2h, C, ...) weight, for h pairs.
        dwconv: (2h, ...) weight.
        project_out: (C, h, ...) weight.
        biases: Biases of the three convolutions.

    Returns:
        Their numbers, 0 to h - 1, sorted.
    """
    pairs = project_out.shape[1]
    alive = live_after_taps(project_in, dwconv, biases[0], biases[1])
    return (alive[:pairs] & alive[pairs:] & (project_out.flatten(1) != 0).any(0)).nonzero()[:, 0]


def ordered_pairs(
    project_in: Tensor,
    dwconv: Tensor,
    project_out: Tensor,
    biases: Sequence[Tensor | None] = (None, None, None),
) -> tuple[Tensor, Tensor]:
    """Return `live_pairs` in the order that suits the kernel.

    Args:
        project_in: (2h, C) weight, for h pairs.
        dwconv: (2h, 9) weight.
        project_out: (C, h) weight.
        biases: Biases of the three convolutions.

    Returns:
        The pairs, and the rows of project_in that compute them: all first halves, then all second ones.
    """
    live, pairs = live_pairs(project_in, dwconv, project_out, biases), project_out.shape[1]
    counts = dwconv.count_nonzero(
        1
    )  # with loops of equal length side by side the processor foresees their ends
    live = live[(counts[live] * 1000 + counts[live + pairs]).argsort(stable=True)]
    return live, torch.cat([live, live + pairs])
