"""GDFN, the gated depthwise feed-forward block, with its layer norm and residual."""

from __future__ import annotations

from ctypes import Structure, c_int64

import torch
from torch import Tensor

from mirl_kernels import _cpu
from mirl_kernels.gdfn.reference import gdfn as reference

__all__ = ["PackedGDFN", "live_pairs", "reference"]


class _Args(Structure):
    _fields_ = [("x", _cpu.Image), ("y", _cpu.Image), ("size", _cpu.Size), ("project_in", _cpu.Rows),
                ("dwconv", _cpu.Rows), ("project_out", _cpu.Rows), ("threads", c_int64)]  # fmt: skip


def live_pairs(project_in: Tensor, dwconv: Tensor, project_out: Tensor) -> Tensor:
    """The pairs of hidden channels that reach the output, sorted.

    A pair is dead when either half has no tap or no input (GELU(0) = 0), or when no output reads it.
    """
    pairs = project_out.shape[1]
    alive = (project_in.flatten(1) != 0).any(1) & (dwconv.flatten(1) != 0).any(1)
    return (alive[:pairs] & alive[pairs:] & (project_out.flatten(1) != 0).any(0)).nonzero()[:, 0]


class PackedGDFN(_cpu.Packed):
    """The surviving weights of one GDFN, dead pairs removed exactly; arguments as in `reference`.

    The norm's gain and bias are folded into the 1x1 layer, which is exact before the zero padding.
    ``live`` are the surviving pairs, in the order that suits the kernel.
    """

    def __init__(self, norm_weight: Tensor, norm_bias: Tensor, project_in: Tensor, dwconv: Tensor,
                 project_out: Tensor) -> None:  # fmt: skip
        pairs = project_out.shape[1]
        fan_in, taps, out = project_in.flatten(1), dwconv.flatten(1), project_out.flatten(1)
        self.live = live_pairs(project_in, dwconv, project_out)
        counts = taps.count_nonzero(1)  # loops of equal length side by side: the processor foresees their ends
        self.live = self.live[(counts[self.live] * 1000 + counts[self.live + pairs]).argsort(stable=True)]
        kept = torch.cat([self.live, self.live + pairs])
        self.channels = project_in.shape[1]
        self._project_in = _cpu.pack_rows(fan_in[kept] * norm_weight, fan_in[kept] @ norm_bias)
        self._dwconv = _cpu.pack_rows(taps[kept])
        self._project_out = _cpu.pack_rows(out[:, self.live])

    def work(self, batch: int, height: int, width: int) -> _cpu.Work:
        pixels, kept = batch * height * width, self._project_in.kept + self._dwconv.kept + self._project_out.kept
        return _cpu.Work(kept * pixels, 8 * self.channels * pixels + 8 * kept)

    def __call__(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> None:
        """``out`` = GDFN(x), both (B, C, H, W); they may not share memory."""
        _cpu.check(x, self.channels, out, x.shape)
        args = _Args(_cpu.image(x), _cpu.image(out), _cpu.size(x), self._project_in, self._dwconv,
                     self._project_out, torch.get_num_threads())  # fmt: skip
        _cpu.call("gdfn", args)
