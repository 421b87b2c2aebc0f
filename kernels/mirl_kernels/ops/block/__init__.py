"""Restormer's transformer block, MDTA and GDFN, as one op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.ops import mdta as mdta_room
from mirl_kernels.ops.block.reference import block as reference
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.mdta import PackedMDTA

__all__ = ["PackedBlock", "reference"]


class _Args(Structure):
    _fields_ = [("mdta", mdta_room.Args), ("y", cpu.Image), ("project_in", c_void_p), ("dwconv", c_void_p),
                ("project_out", c_void_p), ("centred", c_int64), ("threads", c_int64)]  # fmt: skip


@torch.library.custom_op("mirl::block", mutates_args=())
def op(x: Tensor, qkv: Tensor, attention_dwconv: Tensor, attention_out: Tensor, temperature: Tensor, live: Sequence[Tensor],
       attention_centred: bool, project_in: Tensor, dwconv: Tensor, project_out: Tensor, centred: bool) -> Tensor:  # fmt: skip
    """MDTA, then GDFN, by packed matrices: x (B, C, H, W) to the same shape."""
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape)
    cpu.check(x, int(qkv[1]), out, x.shape)
    cpu.expect(attention_out, x.shape[1], x.shape[1])
    cpu.expect(project_out, x.shape[1])
    scratch = mdta_room.scratch_for(x, live)
    attention = mdta_room.arguments(
        x, out, qkv, attention_dwconv, attention_out, temperature, live, attention_centred, scratch
    )
    matrices = map(cpu.address, (project_in, dwconv, project_out))
    cpu.Call("block", _Args(attention, cpu.image(out), *matrices, centred))()
    return out


@op.register_fake
def _(x: Tensor, qkv: Tensor, attention_dwconv: Tensor, attention_out: Tensor, temperature: Tensor, live: Sequence[Tensor],
      attention_centred: bool, project_in: Tensor, dwconv: Tensor, project_out: Tensor, centred: bool) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


class PackedBlock(cpu.Packed):
    """The surviving weights of one transformer block."""

    def __init__(self, mdta: PackedMDTA, gdfn: PackedGDFN) -> None:
        super().__init__()
        self.mdta, self.gdfn = mdta, gdfn
        self._expect_fit(mdta=mdta.qkv, gdfn=gdfn.project_in)

    def _fits(self) -> bool:
        return self.mdta.channels == self.gdfn.channels

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        return self.mdta.scratch_floats(batch, height, width)

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """What a call on (B, C, H, W) must do. What lies between MDTA and GDFN need not be written and read."""
        attention, gdfn = (op.work(batch, height, width) for op in (self.mdta, self.gdfn))
        between = 8 * self.mdta.channels * batch * height * width
        return cpu.Work(attention.macs + gdfn.macs, attention.bytes + gdfn.bytes - between)

    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        return self.mdta._quantities(batch, height, width) + self.gdfn._quantities(batch, height, width)

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """What computes ``out`` = GDFN(MDTA(x)), both (B, C, H, W), possibly the same; ``scratch`` holds `scratch_floats`."""
        cpu.check(x, self.mdta.channels, out, x.shape, scratch, self.scratch_floats(x.shape[0], *x.shape[2:]))
        attention = mdta_room.arguments(x, out, *self.mdta.packed(), scratch)
        *packed, centred = self.gdfn.packed()
        args = _Args(attention, cpu.image(out), *map(cpu.address, packed), centred)
        return cpu.Call("block", args, x, out, scratch, *self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        return op(x, *self.mdta.packed(), *self.gdfn.packed())
