"""Pack MDTA for the C++ kernel, and call that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Layer, PackedMatrix, Quantity
from mirl_kernels.ops.mdta.liveness import by_head, ordered_channels


class MdtaArgs(Structure):
    """Hold the argument of the kernel (``MirlMdta`` of abi.h)."""

    _fields_ = [
        ("x", cpu.Image),
        ("y", cpu.Image),
        ("size", cpu.Size),
        ("qkv", c_void_p),
        ("dwconv", c_void_p),
        ("project_out", c_void_p),
        ("temperature", c_void_p),
        ("centred", c_int64),
        ("gain", c_void_p),
        ("offset", c_void_p),
        ("heads", c_int64),
        ("q_count", c_int64),
        ("k_count", c_int64),
        ("v_count", c_int64),
        ("q_index", c_void_p),
        ("k_index", c_void_p),
        ("v_index", c_void_p),
        ("scratch", c_void_p),
        ("sums", c_void_p),
        ("bfloat16", c_int64),
        ("threads", c_int64),
    ]


class Operands(NamedTuple):
    """Hold what the kernel computes with, beside x.

    Attributes:
        qkv: Packed matrix, whose rows compute the live channels.
        dwconv: Packed taps.
        project_out: Packed matrix.
        temperature: (heads,) float32.
        live: The channels of q, of k and of v that are computed, int32.
        centred: Whether the norm subtracts the mean.
        bfloat16: Whether attention rounds what it multiplies to bfloat16.
    """

    qkv: Tensor
    dwconv: Tensor
    project_out: Tensor
    temperature: Tensor
    live: Sequence[Tensor]
    centred: bool
    bfloat16: bool = False


class TrainingArguments(NamedTuple):
    """Hold what the kernel takes in training alone.

    Attributes:
        norm: Gain and bias of the norm, which are not folded into qkv.
        sums: (B, ...) float64: what the forward kernel leaves to the backward one (``MirlMdta`` of abi.h).
        flat: As for `cpu.size`.
    """

    norm: Layer
    sums: Tensor
    flat: bool


def arguments(
    x: Tensor,
    out: Tensor,
    operands: Operands,
    scratch: Tensor | None,
    training: TrainingArguments | None = None,
) -> MdtaArgs:
    """Return the argument of the kernel for ``out`` = MDTA(x).

    Args:
        x: (B, C, H, W).
        out: The result, of the same shape; it may be x.
        operands: The packed weights.
        scratch: The scratch memory (`scratch_for`); None where no v is live.
        training: What training needs; None for inference.
    """
    matrices, live = operands[:3], operands.live
    return MdtaArgs(
        cpu.image(x),
        cpu.image(out),
        cpu.size(x, training is not None and training.flat),
        *map(cpu.address, matrices),
        cpu.float_address(operands.temperature),
        operands.centred,
        *cpu.layer_addresses(training.norm if training else None),
        operands.temperature.numel(),
        *map(len, live),
        *map(cpu.address, live),
        cpu.optional_address(scratch),
        cpu.optional_address(training.sums if training else None),
        operands.bfloat16,
    )


def scratch_for(x: Tensor, live: Sequence[Tensor]) -> Tensor:
    """Return the scratch memory of a call on x: its live v channels."""
    return x.new_empty(x.shape[0] * x.shape[2] * cpu.padded(x.shape[3]) * len(live[2]))


def gram_floats(q: Tensor, k: Tensor) -> int:
    """Return the size of an item's Gram matrices, as the kernel lays them out.

    Args:
        q: Live q channels of each head.
        k: Live k channels of each head.
    """
    return sum(
        rows * cpu.transposed_columns(columns) for rows, columns in zip(q.tolist(), k.tolist(), strict=True)
    )


@torch.library.custom_op("mirl::mdta", mutates_args=())
def op(
    x: Tensor,
    qkv: Tensor,
    dwconv: Tensor,
    project_out: Tensor,
    temperature: Tensor,
    live: Sequence[Tensor],
    centred: bool,
    bfloat16: bool,
) -> Tensor:
    """Return MDTA(x) by packed matrices.

    Args:
        x: (B, C, H, W).
        qkv: Packed matrix, whose rows compute the live channels.
        dwconv: Packed taps.
        project_out: Packed matrix.
        temperature: (heads,) float32.
        live: The channels of q, of k and of v that are computed, int32.
        centred: Whether the norm subtracts the mean.
        bfloat16: Whether attention rounds what it multiplies to bfloat16.
    """
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape)
    cpu.check(x, PackedMatrix(qkv).columns, out, x.shape)
    PackedMatrix(project_out).expect(x.shape[1], x.shape[1])
    operands = Operands(qkv, dwconv, project_out, temperature, live, centred, bfloat16)
    scratch = scratch_for(x, live)
    cpu.Call("mdta", arguments(x, out, operands, scratch))()
    return out


@op.register_fake
def _(
    x: Tensor,
    qkv: Tensor,
    dwconv: Tensor,
    project_out: Tensor,
    temperature: Tensor,
    live: Sequence[Tensor],
    centred: bool,
    bfloat16: bool,
) -> Tensor:
    return x.new_empty(x.shape)


class PackedMDTA(cpu.Packed):
    """Keep the surviving weights of one MDTA; dead channels are removed exactly.

    The constructor takes what the definition, `mdta`, takes after x.

    Raises:
        ValueError: If the weights do not belong together; where PyTorch notices first, its own error.
    """

    multiplied = ("qkv", "project_out")
    qkv: Tensor
    dwconv: Tensor
    project_out: Tensor
    temperature: Tensor
    q_index: Tensor
    k_index: Tensor
    v_index: Tensor

    def __init__(
        self,
        norm_weight: Tensor,
        norm_bias: Tensor | None,
        qkv: Tensor,
        dwconv: Tensor,
        temperature: Tensor,
        project_out: Tensor,
        biases: Sequence[Tensor | None] = (None, None, None),
    ) -> None:
        super().__init__()
        self.channels, self.heads, self.centred = qkv.shape[1], temperature.numel(), norm_bias is not None
        self.in_bfloat16 = False
        fan_in, taps, out = (w.detach().flatten(1) for w in (qkv, dwconv, project_out))
        live, rows = ordered_channels(fan_in, taps, out, self.heads, biases)
        packed_in, packed_taps = cpu.pack_normalised(
            Layer(norm_weight, norm_bias), Layer(fan_in, biases[0]), Layer(taps, biases[1]), rows
        )
        self.register_buffer("qkv", packed_in)
        self.register_buffer("dwconv", packed_taps)
        self.register_buffer("project_out", cpu.pack(out, biases[2]))
        self.register_buffer("temperature", temperature.detach().flatten().float().clone())
        for name, index in zip("qkv", live, strict=True):
            self.register_buffer(f"{name}_index", index.int().contiguous())
        self._expect_fit(qkv=qkv, dwconv=dwconv, temperature=temperature, project_out=project_out)

    @property
    def live(self) -> list[Tensor]:
        """Return the channels of q, of k and of v that are computed, in the kernel's order."""
        return [self.q_index, self.k_index, self.v_index]

    def operands(self) -> Operands:
        """Return what the kernel computes with."""
        matrices = self.qkv, self.dwconv, self.project_out
        return Operands(*matrices, self.temperature, self.live, self.centred, self.in_bfloat16)

    def to_bfloat16(self) -> None:
        """Round weights to bfloat16, in place, and what attention multiplies when it is called."""
        super().to_bfloat16()
        self.in_bfloat16 = True

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the packed matrices among the buffers."""
        return self.qkv, self.dwconv, self.project_out

    def _fits(self) -> bool:
        (hidden, channels), taps, out = (PackedMatrix(m).shape for m in self.matrices())
        counted = hidden == sum(map(len, self.live)) and taps == (hidden, 9)
        inside = all(bool(((index >= 0) & (index < self.channels)).all()) for index in self.live)
        return counted and inside and channels == self.channels and out == (channels, channels)

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        """Return how many floats the live v channels of a (batch, C, height, width) image take."""
        return len(self.v_index) * batch * height * cpu.padded(width)

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """Return what a call on (batch, C, height, width) must do.

        The attention is applied head by head and then projected, or as one composed matrix, whichever is
        less. v is written and read between the passes over x.
        """
        pixels, nnz = batch * height * width, PackedMatrix(self.qkv).nnz + PackedMatrix(self.dwconv).nnz
        q, k, v = by_head(self.live, self.channels, self.heads)
        projected = self.channels // self.heads * int(v.sum()) + PackedMatrix(self.project_out).nnz
        macs = nnz + int((q * k).sum()) + int((q + k).sum()) + min(projected, self.channels * int(v.sum()))
        return cpu.Work(macs * pixels, (12 * self.channels + 8 * int(v.sum())) * pixels + 8 * nnz)

    def kernel_quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return the quantities of the kernel itself."""
        vectors, groups = cpu.pixel_groups(batch * height, width)
        q, k, v = by_head(self.live, self.channels, self.heads)
        values = int(v.sum())
        counts = cpu.product_quantities(self.qkv, vectors, groups)
        if self._is_composed(values, height * width):
            counts[Quantity.DENSE] += self.channels * values * vectors
        else:
            counts[Quantity.DENSE] += self.channels // self.heads * values * vectors
            counts += cpu.product_quantities(self.project_out, vectors, groups)
        return counts + Counter(
            {
                Quantity.NORM: self.channels * vectors,
                Quantity.TAP: PackedMatrix(self.dwconv).nnz * vectors,
                Quantity.GRAM: gram_floats(q, k) * vectors,
                Quantity.LIVE_QK: int((q + k).sum()) * vectors,
                Quantity.LIVE_V: values * vectors,
                Quantity.SOFTMAX: batch * self.channels**2 // self.heads,
            }
        )

    def _is_composed(self, values: int, pixels: int) -> bool:
        """Return whether the kernel composes attention and projection to one matrix."""
        out = PackedMatrix(self.project_out)
        return bool(
            cpu.kernel_rule(
                "mdta_is_composed", self.channels, self.heads, values, out.nnz, out.is_dense, pixels
            )
        )

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """Return the call that computes ``out`` = MDTA(x), both (B, C, H, W), possibly the same.

        Args:
            x: The input.
            out: The result.
            scratch: At least `scratch_floats` floats.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        cpu.check(x, self.channels, out, x.shape, scratch, self.scratch_floats(x.shape[0], *x.shape[2:]))
        return cpu.Call("mdta", arguments(x, out, self.operands(), scratch), x, out, scratch, *self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        """Return MDTA(x).

        Raises:
            BackendError: If the kernel does not take x.
        """
        return op(x, *self.operands())
