"""MDTA in training: by surviving weights forward and backward, nothing but its input and v kept in between."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Forms
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
from mirl_kernels.ops.mdta import Args, arguments, ordered_channels, scratch_for


class _Args(Structure):
    _fields_ = [("mdta", Args), ("dy", cpu.Image), ("dx", cpu.Image), ("qkv_transposed", c_void_p), ("dwconv_flipped", c_void_p),
                ("project_out_transposed", c_void_p), ("gradient", c_void_p), ("d_gain", c_void_p), ("d_offset", c_void_p),
                ("d_temperature", c_void_p), ("threads", c_int64)]  # fmt: skip


class TrainableMDTA:
    """MDTA (`mirl_kernels.ops.mdta.reference`) with the surviving weights of masks: bool, in the weights' shapes."""

    def __init__(self, qkv: Tensor, dwconv: Tensor, project_out: Tensor, heads: int) -> None:
        live, rows = ordered_channels(qkv.flatten(1), dwconv.flatten(1), project_out.flatten(1), heads)
        self.live = [index.int().contiguous() for index in live]
        forward, back = normalised(qkv, dwconv, rows)
        transposed = Pattern.part(project_out, transposed=True)
        self.weights = Weights([*forward, Pattern.part(project_out, forms=Forms.BOTH)], [*back, transposed])
        self.channels = len(project_out)
        q, k, _ = (torch.bincount(index * heads // self.channels, minlength=heads) for index in live)
        self.sums = int((q * cpu.turned(k) + q + k).sum())  # of an item: MirlMdta.sums of abi.h

    def __call__(self, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, qkv: Tensor, dwconv: Tensor, temperature: Tensor,
                 project_out: Tensor) -> Tensor:  # fmt: skip
        """MDTA(x), x (B, C, H, W) float32; differentiable once, by all arguments. Gradients of pruned weights are zero,
        and those of what a q or k channel that is zero everywhere is divided by its norm."""
        result: Tensor = _Function.apply(
            x, norm_weight, norm_bias, qkv, dwconv, temperature, project_out, self
        )
        return result


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, qkv: Tensor, dwconv: Tensor, temperature: Tensor,
                project_out: Tensor, op: TrainableMDTA) -> Tensor:  # fmt: skip
        x, gain, offset, temperature = laid_out(x), plain(gain), plain(offset), plain(temperature)
        ctx.op, ctx.filled = op, op.weights.fill((qkv, dwconv, project_out))
        y = empty(*x.shape)
        cpu.check(x, op.channels, y, x.shape)
        v, sums = scratch_for(x, op.live), x.new_empty(len(x) * op.sums, dtype=torch.float64)
        ctx.save_for_backward(x, gain, offset, temperature, v, sums, qkv, dwconv, project_out)
        first, taps, last = op.weights.forward
        args = arguments(
            x, y, first, taps, last, temperature, op.live, True, v, gain, offset, sums, flat(*x.shape)
        )
        cpu.Call("mdta", args)()
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        op, (x, gain, offset, temperature, v, sums, *weights) = ctx.op, ctx.saved_tensors
        dy, dx, small = (
            laid_out(dy),
            empty(*x.shape),
            [torch.empty_like(t) for t in (gain, offset, temperature)],
        )
        op.weights.fill_again(weights, ctx.filled)
        written = workspace(op.weights.gradient_floats)
        first, taps, last = op.weights.forward
        forward = arguments(
            x, x, first, taps, last, temperature, op.live, True, v, gain, offset, sums, flat(*x.shape)
        )
        args = _Args(forward, cpu.image(dy), cpu.image(dx), *map(cpu.address, op.weights.back),
                     written, *(t.data_ptr() for t in small))  # fmt: skip
        cpu.Call("mdta_backward", args)()
        d_qkv, d_dwconv, d_project_out = op.weights.spread(written, weights)
        d_gain, d_offset, d_temperature = small
        return dx, d_gain, d_offset, d_qkv, d_dwconv, d_temperature, d_project_out, None
