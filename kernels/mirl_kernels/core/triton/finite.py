"""Keep what kernels store finite."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def finite(value, dtype: tl.constexpr):
    """Return float32 values in another type; in float16 those beyond 65,504 become 65,504.

    Infinity would be worse than a wrong number: times a weight of 0, it makes NaN of every channel. NaN stays
    NaN.
    """
    if dtype == tl.float16:
        value = tl.maximum(value, -65504.0, propagate_nan=tl.PropagateNan.ALL)
        value = tl.minimum(value, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return value.to(dtype)
