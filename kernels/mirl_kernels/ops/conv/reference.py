"""Define a convolution whose store can shuffle pixels and add a residual."""

from torch import Tensor
from torch.nn import functional as F


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] | None = None,
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    shuffle: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """Return a zero-padded convolution of x, its pixels (un)shuffled, plus a residual.

    Args:
        x: (B, C, H, W).
        weight: (O, C / groups, k, l).
        bias: (O,) or None.
        stride: Along rows and columns.
        padding: Top, bottom, left and right, 0 or more; None keeps the size for an odd kernel without stride
            and dilation.
        dilation: Along rows and columns.
        groups: Number of groups.
        shuffle: r > 1 is ``pixel_shuffle(r)``, to (B, O / r^2, r H, r W); r < -1 is ``pixel_unshuffle(-r)``,
            to (B, O r^2, H / r, W / r); 1 stores as computed.
        residual: In the shape of the result, or None.

    Returns:
        (B, O, H, W) of the convolution's size, shuffled.
    """
    rows, columns = weight.shape[2:]
    top, bottom, left, right = (
        padding if padding is not None else (rows // 2, rows // 2, columns // 2, columns // 2)
    )
    y = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)
    if shuffle > 1:
        y = F.pixel_shuffle(y, shuffle)
    elif shuffle < -1:
        y = F.pixel_unshuffle(y, -shuffle)
    return y if residual is None else y + residual
