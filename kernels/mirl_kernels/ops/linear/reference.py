"""Define the linear layer."""

from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias``.

    Args:
        x: (..., C).
        weight: (O, C).
        bias: (O,) or None.

    Returns:
        (..., O).
    """
    return F.linear(x, weight, bias)
