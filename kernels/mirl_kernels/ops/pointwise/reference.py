"""Define the pointwise (1x1) convolution."""

from torch import Tensor
from torch.nn import functional as F


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the 1x1 convolution of x.

    Args:
        x: (B, C, H, W).
        weight: (O, C, 1, 1).
        bias: (O,) or None.

    Returns:
        (B, O, H, W).
    """
    return F.conv2d(x, weight, bias)
