"""Define the layer norm over the channels of each pixel, with which every block begins."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = EPS) -> Tensor:
    """Return x, normalised over its channels at each pixel.

    Args:
        x: (B, C, H, W).
        weight: (C,) gain.
        bias: (C,) bias. Without it the pixel is divided by its deviation, but not centred (Restormer's
            BiasFree_LayerNorm).
        eps: Added to the variance, which is the biased one, inside the root.

    Returns:
        (B, C, H, W).
    """
    if bias is None:
        return x * torch.rsqrt(x.var(1, correction=0, keepdim=True) + eps) * weight[:, None, None]
    return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, eps).permute(0, 3, 1, 2)
