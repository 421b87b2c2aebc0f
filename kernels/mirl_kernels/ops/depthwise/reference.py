"""Define the depthwise convolution: its own filters for each channel."""

from torch import Tensor
from torch.nn import functional as F


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] | None = None,
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """Return a zero-padded depthwise convolution of x, whose output channel o reads channel o // m.

    Args:
        x: (B, C, H, W).
        weight: (m C, 1, k, l).
        bias: (m C,) or None.
        stride: Along rows and columns.
        padding: Top, bottom, left and right, 0 or more; None keeps the size for an odd kernel without stride
            and dilation.
        dilation: Along rows and columns.

    Returns:
        (B, m C, H, W) of the convolution's size.
    """
    rows, columns = weight.shape[2:]
    top, bottom, left, right = (
        padding if padding is not None else (rows // 2, rows // 2, columns // 2, columns // 2)
    )
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, x.shape[1])
