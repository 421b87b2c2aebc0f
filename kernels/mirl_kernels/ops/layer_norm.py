"""Layer norm over the channels of each pixel, as every block begins."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = EPS) -> Tensor:
    """Normalise (B, C, H, W) over C at each pixel: biased variance, ``eps`` inside the root. Without a bias the pixel is
    divided by its deviation, but not centred (Restormer's BiasFree_LayerNorm)."""
    if bias is None:
        return x * torch.rsqrt(x.var(1, correction=0, keepdim=True) + eps) * weight[:, None, None]
    return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, eps).permute(0, 3, 1, 2)
