"""Define MDTA, the transposed attention block (Restormer, CVPR 2022, section 3.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mirl_kernels.core.layer_norm import layer_norm


def mdta(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    qkv: Tensor,
    dwconv: Tensor,
    temperature: Tensor,
    project_out: Tensor,
    biases: Sequence[Tensor | None] = (None, None, None),
) -> Tensor:
    """Return ``x + project_out(softmax(temperature * q k^T) v)`` with ``q, k, v = dwconv(qkv(norm(x)))``.

    Attention is between channels: q and k are divided by their L2 norm over all pixels (floor 1e-12). Heads
    are contiguous groups of channels.

    Args:
        x: (B, C, H, W).
        norm_weight: (C,) gain of the norm.
        norm_bias: (C,) bias of the norm; without it the norm does not centre (`layer_norm`).
        qkv: (3C, C, 1, 1).
        dwconv: (3C, 1, 3, 3).
        temperature: (n, 1, 1), for n heads.
        project_out: (C, C, 1, 1).
        biases: Biases of qkv, dwconv and project_out, or None for each.

    Returns:
        (B, C, H, W).
    """
    b, c, h, w = x.shape
    heads = temperature.shape[0]
    mixed = F.conv2d(layer_norm(x, norm_weight, norm_bias), qkv, biases[0])
    mixed = F.conv2d(mixed, dwconv, biases[1], padding=1, groups=3 * c)
    q, k, v = mixed.reshape(b, 3, heads, c // heads, h * w).unbind(1)
    floor = max(1e-12, torch.finfo(x.dtype).tiny)  # float16 has no 1e-12: a dead channel would be 0 / 0
    q, k = F.normalize(q, dim=-1, eps=floor), F.normalize(k, dim=-1, eps=floor)
    attention = (q @ k.transpose(-2, -1) * temperature).softmax(dim=-1)
    return x + F.conv2d((attention @ v).reshape(b, c, h, w), project_out, biases[2])
