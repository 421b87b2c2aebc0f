"""Definition of Restormer's transformer block (CVPR 2022, figure 2): MDTA, then GDFN."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mirl_kernels.ops.gdfn import reference as gdfn
from mirl_kernels.ops.mdta import reference as mdta


def block(x: Tensor, attention: tuple[Any, ...], feed_forward: tuple[Any, ...]) -> Tensor:
    """x (B, C, H, W) to the same shape; ``attention`` and ``feed_forward`` are what `mdta` and `gdfn` take after x."""
    return gdfn(mdta(x, *attention), *feed_forward)
