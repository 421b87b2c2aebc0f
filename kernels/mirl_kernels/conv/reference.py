"""Definition of a k x k convolution whose store can shuffle pixels and add a residual."""

from torch import Tensor
from torch.nn import functional as F


def conv(x: Tensor, weight: Tensor, shuffle: int = 1, residual: Tensor | None = None) -> Tensor:
    """Zero-padded stride-1 convolution, then pixel (un)shuffle, then ``+ residual``.

    Shapes: x (B, C, H, W), weight (O, C, k, k) with odd k. ``shuffle`` r > 1 is
    ``pixel_shuffle(r)``: (B, O / r^2, r H, r W); r < -1 is ``pixel_unshuffle(-r)``:
    (B, O r^2, H / r, W / r); 1 stores as computed. ``residual`` has the shape of the result.
    """
    y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    if shuffle > 1:
        y = F.pixel_shuffle(y, shuffle)
    elif shuffle < -1:
        y = F.pixel_unshuffle(y, -shuffle)
    return y if residual is None else y + residual
