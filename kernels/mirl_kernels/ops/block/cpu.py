"""Pack Restormer's transformer block for the C++ kernel, and call that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import PackedMatrix
from mirl_kernels.ops.gdfn.cpu import Operands as GdfnOperands
from mirl_kernels.ops.gdfn.cpu import PackedGDFN
from mirl_kernels.ops.mdta.cpu import MdtaArgs, PackedMDTA, arguments, scratch_for
from mirl_kernels.ops.mdta.cpu import Operands as MdtaOperands


class BlockArgs(Structure):
    """Hold the argument of the kernel (``MirlBlock`` of abi.h)."""

    _fields_ = [
        ("mdta", MdtaArgs),
        ("y", cpu.Image),
        ("project_in", c_void_p),
        ("dwconv", c_void_p),
        ("project_out", c_void_p),
        ("centred", c_int64),
        ("threads", c_int64),
    ]


def _arguments(
    x: Tensor, out: Tensor, mdta: MdtaOperands, gdfn: GdfnOperands, scratch: Tensor | None
) -> BlockArgs:
    attention = arguments(x, out, mdta, scratch)
    return BlockArgs(attention, cpu.image(out), *map(cpu.address, gdfn[:3]), gdfn.centred)


@torch.library.custom_op("mirl::block", mutates_args=())
def op(
    x: Tensor,
    qkv: Tensor,
    attention_dwconv: Tensor,
    attention_out: Tensor,
    temperature: Tensor,
    live: Sequence[Tensor],
    attention_centred: bool,
    bfloat16: bool,
    project_in: Tensor,
    dwconv: Tensor,
    project_out: Tensor,
    centred: bool,
) -> Tensor:
    """Return GDFN(MDTA(x)) by packed matrices.

    Args:
        x: (B, C, H, W).
        qkv: As the op of MDTA takes it, and so are the next five.
        attention_dwconv: MDTA's dwconv.
        attention_out: MDTA's project_out.
        temperature: (heads,) float32.
        live: The channels of q, of k and of v that are computed.
        attention_centred: Whether MDTA's norm subtracts the mean.
        bfloat16: Whether attention rounds what it multiplies to bfloat16.
        project_in: As the op of GDFN takes it, and so are the rest.
        dwconv: GDFN's dwconv.
        project_out: GDFN's project_out.
        centred: Whether GDFN's norm subtracts the mean.
    """
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape)
    cpu.check(x, PackedMatrix(qkv).columns, out, x.shape)
    PackedMatrix(attention_out).expect(x.shape[1], x.shape[1])
    PackedMatrix(project_out).expect(x.shape[1])
    mdta = MdtaOperands(qkv, attention_dwconv, attention_out, temperature, live, attention_centred, bfloat16)
    gdfn = GdfnOperands(project_in, dwconv, project_out, centred)
    scratch = scratch_for(x, live)
    cpu.Call("block", _arguments(x, out, mdta, gdfn, scratch))()
    return out


@op.register_fake
def _(
    x: Tensor,
    qkv: Tensor,
    attention_dwconv: Tensor,
    attention_out: Tensor,
    temperature: Tensor,
    live: Sequence[Tensor],
    attention_centred: bool,
    bfloat16: bool,
    project_in: Tensor,
    dwconv: Tensor,
    project_out: Tensor,
    centred: bool,
) -> Tensor:
    return x.new_empty(x.shape)


class PackedBlock(cpu.Packed):
    """Keep the surviving weights of one transformer block.

    Args:
        mdta: The packed attention.
        gdfn: The packed feed-forward.

    Raises:
        ValueError: If they have different numbers of channels.
    """

    def __init__(self, mdta: PackedMDTA, gdfn: PackedGDFN) -> None:
        super().__init__()
        self.mdta, self.gdfn = mdta, gdfn
        self._expect_fit(mdta=mdta.qkv, gdfn=gdfn.project_in)

    @classmethod
    def from_weights(cls, attention: Sequence[Any], feed_forward: Sequence[Any]) -> PackedBlock:
        """Return a block packed from what its definition, `block`, takes after x."""
        return cls(PackedMDTA(*attention), PackedGDFN(*feed_forward))

    def matrices(self) -> tuple[Tensor, ...]:
        """Return no packed matrices: they are buffers of the two halves, which check them."""
        return ()

    def _fits(self) -> bool:
        return self.mdta.channels == self.gdfn.channels

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        """Return how many floats of scratch memory a call on (batch, C, height, width) takes."""
        return self.mdta.scratch_floats(batch, height, width)

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """Return what a call on (batch, C, height, width) must do.

        What lies between MDTA and GDFN need not be written and read.
        """
        attention, feed_forward = (half.work(batch, height, width) for half in (self.mdta, self.gdfn))
        between = 8 * self.mdta.channels * batch * height * width
        return cpu.Work(attention.macs + feed_forward.macs, attention.bytes + feed_forward.bytes - between)

    def kernel_quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return the quantities of the kernel itself: those of both halves."""
        size = batch, height, width
        return self.mdta.kernel_quantities(*size) + self.gdfn.kernel_quantities(*size)

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """Return the call that computes ``out`` = GDFN(MDTA(x)), both (B, C, H, W), possibly the same.

        Args:
            x: The input.
            out: The result.
            scratch: At least `scratch_floats` floats.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        floats = self.scratch_floats(x.shape[0], *x.shape[2:])
        cpu.check(x, self.mdta.channels, out, x.shape, scratch, floats)
        args = _arguments(x, out, self.mdta.operands(), self.gdfn.operands(), scratch)
        return cpu.Call("block", args, x, out, scratch, *self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        """Return GDFN(MDTA(x)).

        Raises:
            BackendError: If the kernel does not take x.
        """
        return op(x, *self.mdta.operands(), *self.gdfn.operands())
