"""Definition of the linear layer."""

from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias``: x (..., C), weight (O, C), bias (O,), to (..., O)."""
    return F.linear(x, weight, bias)
