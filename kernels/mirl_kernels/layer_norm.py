"""Layer norm over the channels of each pixel, as every block begins."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Normalise (B, C, H, W) over C at each pixel: biased variance, 1e-5 inside the root. Without a bias the pixel is
    divided by its deviation, but not centred (Restormer's BiasFree_LayerNorm)."""
    if bias is None:
        return x * torch.rsqrt(x.var(1, correction=0, keepdim=True) + EPS) * weight[:, None, None]
    return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, EPS).permute(0, 3, 1, 2)
