"""Let a launch begin while the one before it ends (programmatic dependent launch; NVIDIA, from sm_90 on)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def after_previous(PDL: tl.constexpr):
    """Wait for the launches before, and let the next one begin; every kernel calls it first.

    Without PDL a launch begins when the one before has ended, and nothing is to be done. With it, programs of
    the next launch take their places as soon as all programs of this one are running, and wait here until all
    that this one writes can be read. This one waits before it lets the next one begin, so at most two are
    under way. Nothing is read or written before: a table may have been made by the launch before, and a
    result takes the memory of something that an earlier launch reads.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
