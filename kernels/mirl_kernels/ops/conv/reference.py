"""Definition of a convolution whose store can shuffle pixels and add a residual."""

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
    """Zero-padded convolution, then pixel (un)shuffle, then ``+ residual``.

    Shapes: x (B, C, H, W), weight (O, C / groups, k, l), bias (O,). ``padding`` is (top, bottom, left, right), 0 or
    more; None keeps the size of an odd kernel without stride and dilation. ``shuffle`` r > 1 is ``pixel_shuffle(r)``: (B, O / r^2, r H, r W);
    r < -1 is ``pixel_unshuffle(-r)``: (B, O r^2, H / r, W / r); 1 stores as computed. ``residual`` has the
    shape of the result.
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
