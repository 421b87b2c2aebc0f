"""Define GDFN, the gated depthwise feed-forward block (Restormer, CVPR 2022, section 3.2)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from mirl_kernels.core.layer_norm import layer_norm


def gdfn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    project_in: Tensor,
    dwconv: Tensor,
    project_out: Tensor,
    biases: Sequence[Tensor | None] = (None, None, None),
) -> Tensor:
    """Return ``x + project_out(GELU(a) * b)`` with ``a, b = dwconv(project_in(norm(x)))``.

    Args:
        x: (B, C, H, W).
        norm_weight: (C,) gain of the norm.
        norm_bias: (C,) bias of the norm; without it the norm does not centre (`layer_norm`).
        project_in: (2h, C, 1, 1), for h pairs of hidden channels.
        dwconv: (2h, 1, 3, 3).
        project_out: (C, h, 1, 1).
        biases: Biases of the three convolutions, or None for each.

    Returns:
        (B, C, H, W).
    """
    hidden = F.conv2d(layer_norm(x, norm_weight, norm_bias), project_in, biases[0])
    a, b = F.conv2d(hidden, dwconv, biases[1], padding=1, groups=hidden.shape[1]).chunk(2, dim=1)
    return x + F.conv2d(F.gelu(a) * b, project_out, biases[2])
