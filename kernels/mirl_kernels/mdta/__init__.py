"""MDTA, the transposed attention block, with its layer norm and residual."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels import _cpu
from mirl_kernels.mdta.reference import mdta as reference

__all__ = ["PackedMDTA", "live_channels", "reference"]


class _Args(Structure):
    _fields_ = [("x", _cpu.Image), ("y", _cpu.Image), ("size", _cpu.Size), ("qkv", _cpu.Rows), ("dwconv", _cpu.Rows),
                ("project_out", _cpu.Rows), ("temperature", c_void_p), ("heads", c_int64), ("q_count", c_int64),
                ("k_count", c_int64), ("v_count", c_int64), ("q_index", c_void_p), ("k_index", c_void_p),
                ("v_index", c_void_p), ("scratch", c_void_p), ("threads", c_int64)]  # fmt: skip


def live_channels(qkv: Tensor, dwconv: Tensor, project_out: Tensor, heads: int) -> list[Tensor]:
    """The channels of q, of k and of v that must be computed, each sorted.

    A v channel without taps or inputs is zero and is dropped. A q or k channel that is zero has
    logits of 0, which still count in the softmax, so it is only its computation that is dropped. Where
    no output reads a row of the attention, its q is dropped; where none reads a head, or all its v are
    zero, all of the head; and where all q or all k of a head are zero, so are all its logits.
    """
    q, k, v = ((qkv.flatten(1) != 0).any(1) & (dwconv.flatten(1) != 0).any(1)).view(3, heads, -1)
    read = (project_out.flatten(1) != 0).any(0).view(heads, -1)
    v = v & read.any(1, keepdim=True)
    q = q & read & v.any(1, keepdim=True)
    k = k & q.any(1, keepdim=True)
    q = q & k.any(1, keepdim=True)
    return [live.flatten().nonzero()[:, 0] for live in (q, k, v)]


class PackedMDTA(_cpu.Packed):
    """The surviving weights of one MDTA, dead channels removed exactly; arguments as in `reference`."""

    def __init__(self, norm_weight: Tensor, norm_bias: Tensor, qkv: Tensor, dwconv: Tensor, temperature: Tensor,
                 project_out: Tensor) -> None:  # fmt: skip
        self.channels, self.heads = qkv.shape[1], temperature.shape[0]
        fan_in, taps, out = qkv.flatten(1), dwconv.flatten(1), project_out.flatten(1)
        self.live = live_channels(qkv, dwconv, project_out, self.heads)
        counts = taps.count_nonzero(1).view(
            3, -1
        )  # loops of equal length side by side: the processor foresees their ends
        for i, index in enumerate(self.live):
            self.live[i] = index[(index * self.heads // self.channels * 1000 + counts[i, index]).argsort(stable=True)]
        kept = torch.cat([index + i * self.channels for i, index in enumerate(self.live)])
        self._index = [index.int().contiguous() for index in self.live]
        self._temperature = temperature.flatten().float().contiguous()
        self._qkv = _cpu.pack_rows(fan_in[kept] * norm_weight, fan_in[kept] @ norm_bias)
        self._dwconv = _cpu.pack_rows(taps[kept])
        self._project_out = _cpu.pack_rows(out)

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        """How many floats of scratch memory a call on (B, C, H, W) takes: its live v channels, row by row."""
        return len(self.live[2]) * batch * height * _cpu.padded(width)

    def work(self, batch: int, height: int, width: int) -> _cpu.Work:
        """What a call on (B, C, H, W) must do. The attention is applied head by head and then projected, or as
        one composed matrix, whichever is less; v is written and read between the passes over x."""
        pixels, kept = batch * height * width, self._qkv.kept + self._dwconv.kept
        q, k, v = (torch.bincount(i * self.heads // self.channels, minlength=self.heads) for i in self.live)
        apply = min(self.channels // self.heads * int(v.sum()) + self._project_out.kept, self.channels * int(v.sum()))
        macs = kept + int((q * k).sum()) + int((q + k).sum()) + apply
        return _cpu.Work(macs * pixels, (12 * self.channels + 8 * int(v.sum())) * pixels + 8 * kept)

    def __call__(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> None:
        """``out`` = MDTA(x), both (B, C, H, W), possibly the same; ``scratch`` holds `scratch_floats`."""
        _cpu.check(x, self.channels, out, x.shape, scratch, self.scratch_floats(x.shape[0], *x.shape[2:]))
        q, k, v = self._index
        args = _Args(_cpu.image(x), _cpu.image(out), _cpu.size(x), self._qkv, self._dwconv, self._project_out,
                     self._temperature.data_ptr(), self.heads, len(q), len(k), len(v), q.data_ptr(), k.data_ptr(),
                     v.data_ptr(), 0 if scratch is None else scratch.data_ptr(), torch.get_num_threads())  # fmt: skip
        _cpu.call("mdta", args)
