"""Define Restormer's transformer block (CVPR 2022, figure 2): MDTA, then GDFN."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mirl_kernels.ops.gdfn.reference import gdfn
from mirl_kernels.ops.mdta.reference import mdta


def block(x: Tensor, attention: tuple[Any, ...], feed_forward: tuple[Any, ...]) -> Tensor:
    """Return GDFN(MDTA(x)).

    Args:
        x: (B, C, H, W).
        attention: What `mdta` takes after x.
        feed_forward: What `gdfn` takes after x.

    Returns:
        (B, C, H, W).
    """
    return gdfn(mdta(x, *attention), *feed_forward)
