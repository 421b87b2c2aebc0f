"""Define the transposed convolution."""

from torch import Tensor
from torch.nn import functional as F


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    output_padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Return a transposed convolution of x.

    It is the gradient of a convolution with respect to its input, as a layer.

    Args:
        x: (B, C, H, W).
        weight: (C, O / groups, k, l).
        bias: (O,) or None.
        stride: Along rows and columns.
        padding: Along rows and columns.
        output_padding: Along rows and columns.
        dilation: Along rows and columns.
        groups: Number of groups.

    Returns:
        (B, O, stride (H - 1) + dilation (k - 1) + 1 + output_padding - 2 padding, W likewise).
    """
    return F.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
