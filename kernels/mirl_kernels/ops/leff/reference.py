"""Define LeFF, the locally enhanced feed-forward layer (Uformer, CVPR 2022, section 3.2)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def leff(
    x: Tensor,
    norm: tuple[Tensor, Tensor, float],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] = (None, None, None),
) -> Tensor:
    """Return ``x + linear2(GELU(dwconv(GELU(linear1(norm(x))))))``.

    Args:
        x: (B, H, W, C).
        norm: Gain (C,), bias (C,) and epsilon of the norm.
        weights: Those of linear1 (h, C), dwconv (h, 1, 3, 3) and linear2 (C, h).
        biases: Those of the same three, or None for each.

    Returns:
        (B, H, W, C).
    """
    linear1, dwconv, linear2 = zip(weights, biases, strict=True)
    hidden = F.gelu(F.linear(F.layer_norm(x, x.shape[3:], *norm), *linear1)).permute(0, 3, 1, 2)
    tapped = F.gelu(F.conv2d(hidden, *dwconv, padding=1, groups=hidden.shape[1])).permute(0, 2, 3, 1)
    return x + F.linear(tapped, *linear2)
