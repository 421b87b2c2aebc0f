"""Train an MDTA by its surviving weights, forward and backward; only its input and v are kept in between."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Forms, Layer
from mirl_kernels.core.cpu.training import (
    Pattern,
    Weights,
    empty,
    flat,
    laid_out,
    normalised,
    plain,
    workspace,
)
from mirl_kernels.ops.mdta.cpu import (
    MdtaArgs,
    Operands,
    TrainingArguments,
    arguments,
    gram_floats,
    scratch_for,
)
from mirl_kernels.ops.mdta.liveness import by_head, ordered_channels


class MdtaBackwardArgs(Structure):
    """Hold the argument of the backward kernel (``MirlMdtaBackward`` of abi.h)."""

    _fields_ = [
        ("mdta", MdtaArgs),
        ("dy", cpu.Image),
        ("dx", cpu.Image),
        ("qkv_transposed", c_void_p),
        ("dwconv_flipped", c_void_p),
        ("project_out_transposed", c_void_p),
        ("gradient", c_void_p),
        ("d_gain", c_void_p),
        ("d_offset", c_void_p),
        ("d_temperature", c_void_p),
        ("threads", c_int64),
    ]


class TrainableMDTA:
    """Run MDTA (`mirl_kernels.ops.mdta.mdta`) with the weights that survive masks.

    Args:
        qkv: Mask, bool, in the weight's shape.
        dwconv: Mask, likewise.
        project_out: Mask, likewise.
        heads: Number of heads.
    """

    def __init__(self, qkv: Tensor, dwconv: Tensor, project_out: Tensor, heads: int) -> None:
        live, rows = ordered_channels(qkv.flatten(1), dwconv.flatten(1), project_out.flatten(1), heads)
        self.live = [index.int().contiguous() for index in live]
        forward, back = normalised(qkv, dwconv, rows)
        transposed = Pattern.part(project_out, transposed=True)
        self.weights = Weights([*forward, Pattern.part(project_out, forms=Forms.BOTH)], [*back, transposed])
        self.channels = len(project_out)
        q, k, _ = by_head(live, self.channels, heads)
        # Of an item: MirlMdta.sums of abi.h.
        self.sums = gram_floats(q, k) + int((q + k).sum())

    def __call__(
        self,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        qkv: Tensor,
        dwconv: Tensor,
        temperature: Tensor,
        project_out: Tensor,
    ) -> Tensor:
        """Return MDTA(x), differentiable once by all arguments.

        Gradients of pruned weights are zero. A q or k channel that is zero everywhere passes no gradient
        through its division by its norm.

        Args:
            x: (B, C, H, W) float32.
            norm_weight: (C,) gain of the norm.
            norm_bias: (C,) bias of the norm.
            qkv: Weight, in the shape of its mask.
            dwconv: Weight, likewise.
            temperature: (heads, 1, 1).
            project_out: Weight, likewise.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        y: Tensor = _Function.apply(x, norm_weight, norm_bias, qkv, dwconv, temperature, project_out, self)
        return y

    def arguments(
        self, x: Tensor, y: Tensor, temperature: Tensor, v: Tensor, norm: Layer, sums: Tensor
    ) -> MdtaArgs:
        """Return the argument of the forward kernel; ``v`` is its scratch memory."""
        first, taps, last = self.weights.forward
        operands = Operands(first, taps, last, temperature, self.live, True)
        return arguments(x, y, operands, v, TrainingArguments(norm, sums, flat(*x.shape)))


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        offset: Tensor,
        qkv: Tensor,
        dwconv: Tensor,
        temperature: Tensor,
        project_out: Tensor,
        op: TrainableMDTA,
    ) -> Tensor:
        x, gain, offset, temperature = laid_out(x), plain(gain), plain(offset), plain(temperature)
        ctx.op, ctx.filled = op, op.weights.fill((qkv, dwconv, project_out))
        y = empty(*x.shape)
        cpu.check(x, op.channels, y, x.shape)
        v, sums = scratch_for(x, op.live), x.new_empty(len(x) * op.sums, dtype=torch.float64)
        ctx.save_for_backward(x, gain, offset, temperature, v, sums, qkv, dwconv, project_out)
        cpu.Call("mdta", op.arguments(x, y, temperature, v, Layer(gain, offset), sums))()
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        op, (x, gain, offset, temperature, v, sums, *weights) = ctx.op, ctx.saved_tensors
        dy, dx = laid_out(dy), empty(*x.shape)
        d_gain, d_offset, d_temperature = (torch.empty_like(t) for t in (gain, offset, temperature))
        op.weights.fill_again(weights, ctx.filled)
        written = workspace(op.weights.gradient_floats)
        args = MdtaBackwardArgs(
            op.arguments(x, x, temperature, v, Layer(gain, offset), sums),
            cpu.image(dy),
            cpu.image(dx),
            *map(cpu.address, op.weights.back),
            written,
            *(t.data_ptr() for t in (d_gain, d_offset, d_temperature)),
        )
        cpu.Call("mdta_backward", args)()
        d_qkv, d_dwconv, d_project_out = op.weights.spread(written, weights)
        return dx, d_gain, d_offset, d_qkv, d_dwconv, d_temperature, d_project_out, None
