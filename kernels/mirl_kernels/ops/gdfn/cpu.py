"""Pack GDFN for the C++ kernel, and call that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Layer, PackedMatrix, Quantity
from mirl_kernels.ops.gdfn.liveness import ordered_pairs


class GdfnArgs(Structure):
    """Hold the argument of the kernel (``MirlGdfn`` of abi.h)."""

    _fields_ = [
        ("x", cpu.Image),
        ("y", cpu.Image),
        ("size", cpu.Size),
        ("project_in", c_void_p),
        ("dwconv", c_void_p),
        ("project_out", c_void_p),
        ("centred", c_int64),
        ("gain", c_void_p),
        ("offset", c_void_p),
        ("threads", c_int64),
    ]


class Operands(NamedTuple):
    """Hold what the kernel computes with, beside x.

    Attributes:
        project_in: Packed matrix.
        dwconv: Packed taps.
        project_out: Packed matrix.
        centred: Whether the norm subtracts the mean.
    """

    project_in: Tensor
    dwconv: Tensor
    project_out: Tensor
    centred: bool


def arguments(
    x: Tensor, out: Tensor, operands: Operands, norm: Layer | None = None, flat: bool = False
) -> GdfnArgs:
    """Return the argument of the kernel for ``out`` = GDFN(x).

    Args:
        x: (B, C, H, W).
        out: The result, of the same shape.
        operands: The packed weights.
        norm: Gain and bias of the norm; None where they are folded into project_in.
        flat: As for `cpu.size`.
    """
    return GdfnArgs(
        cpu.image(x),
        cpu.image(out),
        cpu.size(x, flat),
        *map(cpu.address, operands[:3]),
        operands.centred,
        *cpu.layer_addresses(norm),
    )


@torch.library.custom_op("mirl::gdfn", mutates_args=())
def op(x: Tensor, project_in: Tensor, dwconv: Tensor, project_out: Tensor, centred: bool) -> Tensor:
    """Return GDFN(x) by packed matrices.

    Args:
        x: (B, C, H, W).
        project_in: Packed matrix.
        dwconv: Packed taps.
        project_out: Packed matrix.
        centred: Whether the norm subtracts the mean.
    """
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape)
    cpu.check(x, PackedMatrix(project_in).columns, out, x.shape)
    PackedMatrix(project_out).expect(x.shape[1])
    cpu.Call("gdfn", arguments(x, out, Operands(project_in, dwconv, project_out, centred)))()
    return out


@op.register_fake
def _(x: Tensor, project_in: Tensor, dwconv: Tensor, project_out: Tensor, centred: bool) -> Tensor:
    return x.new_empty(x.shape)


class PackedGDFN(cpu.Packed):
    """Keep the surviving weights of one GDFN; dead pairs are removed exactly.

    The norm's gain and bias are folded into the 1x1 layer, which is exact before the zero padding.

    The constructor takes what the definition, `gdfn`, takes after x.

    Raises:
        ValueError: If the weights do not belong together; where PyTorch notices first, its own error.
    """

    multiplied = ("project_in", "project_out")
    project_in: Tensor
    dwconv: Tensor
    project_out: Tensor

    def __init__(
        self,
        norm_weight: Tensor,
        norm_bias: Tensor | None,
        project_in: Tensor,
        dwconv: Tensor,
        project_out: Tensor,
        biases: Sequence[Tensor | None] = (None, None, None),
    ) -> None:
        super().__init__()
        fan_in, taps, out = (w.detach().flatten(1) for w in (project_in, dwconv, project_out))
        live, rows = ordered_pairs(fan_in, taps, out, biases)
        self.channels, self.centred = project_in.shape[1], norm_bias is not None
        packed_in, packed_taps = cpu.pack_normalised(
            Layer(norm_weight, norm_bias), Layer(fan_in, biases[0]), Layer(taps, biases[1]), rows
        )
        self.register_buffer("project_in", packed_in)
        self.register_buffer("dwconv", packed_taps)
        self.register_buffer("project_out", cpu.pack(out[:, live], biases[2]))
        self._expect_fit(project_in=project_in, dwconv=dwconv, project_out=project_out)

    def operands(self) -> Operands:
        """Return what the kernel computes with."""
        return Operands(self.project_in, self.dwconv, self.project_out, self.centred)

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the packed matrices among the buffers."""
        return self.project_in, self.dwconv, self.project_out

    def _fits(self) -> bool:
        (hidden, channels), taps, out = (PackedMatrix(m).shape for m in self.matrices())
        return channels == self.channels and taps == (hidden, 9) and out == (channels, hidden // 2)

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """Return what a call on (batch, C, height, width) must do."""
        pixels = batch * height * width
        nnz = sum(PackedMatrix(m).nnz for m in self.matrices())
        return cpu.Work(nnz * pixels, 8 * self.channels * pixels + 8 * nnz)

    def kernel_quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return the quantities of the kernel itself."""
        vectors, groups = cpu.pixel_groups(batch * height, width)
        counts = cpu.product_quantities(self.project_in, vectors, groups)
        counts += cpu.product_quantities(self.project_out, vectors, groups)
        return counts + Counter(
            {
                Quantity.NORM: self.channels * vectors,
                Quantity.GATE: PackedMatrix(self.project_out).columns * vectors,
                Quantity.TAP: PackedMatrix(self.dwconv).nnz * vectors,
            }
        )

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """Return the call that computes ``out`` = GDFN(x), both (B, C, H, W).

        They may not share memory. ``scratch`` is not used.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        cpu.check(x, self.channels, out, x.shape)
        return cpu.Call("gdfn", arguments(x, out, self.operands()), x, out, *self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        """Return GDFN(x).

        Raises:
            BackendError: If the kernel does not take x.
        """
        return op(x, *self.operands())
