"""Definition of the depthwise convolution: one k x k filter per channel."""

from torch import Tensor
from torch.nn import functional as F


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """Zero-padded stride-1 depthwise convolution: x (B, C, H, W), weight (C, 1, k, k), k odd."""
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])
