"""GDFN in training: by surviving weights forward and backward, nothing of hidden size kept in between."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from mirl_kernels.core import cpu
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
from mirl_kernels.ops.gdfn import Args, arguments, ordered_pairs


class _Args(Structure):
    _fields_ = [("gdfn", Args), ("dy", cpu.Image), ("dx", cpu.Image), ("project_in_transposed", c_void_p),
                ("dwconv_flipped", c_void_p), ("project_out_transposed", c_void_p), ("gradient", c_void_p),
                ("d_gain", c_void_p), ("d_offset", c_void_p), ("threads", c_int64)]  # fmt: skip


class TrainableGDFN:
    """GDFN (`mirl_kernels.ops.gdfn.reference`) with the surviving weights of masks: bool, in the weights' shapes."""

    def __init__(self, project_in: Tensor, dwconv: Tensor, project_out: Tensor) -> None:
        live, rows = ordered_pairs(project_in.flatten(1), dwconv.flatten(1), project_out.flatten(1))
        forward, back = normalised(project_in, dwconv, rows)
        self.weights = Weights(
            [*forward, Pattern.part(project_out, columns=live)],
            [*back, Pattern.part(project_out, columns=live, transposed=True)],
        )
        self.channels = len(project_out)

    def __call__(
        self,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        project_in: Tensor,
        dwconv: Tensor,
        project_out: Tensor,
    ) -> Tensor:
        """GDFN(x), x (B, C, H, W) float32; differentiable once, by all arguments. Gradients of pruned weights are zero."""
        result: Tensor = _Function.apply(x, norm_weight, norm_bias, project_in, dwconv, project_out, self)
        return result


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, project_in: Tensor, dwconv: Tensor, project_out: Tensor,
                op: TrainableGDFN) -> Tensor:  # fmt: skip
        x, gain, offset = laid_out(x), plain(gain), plain(offset)
        ctx.op, ctx.filled = op, op.weights.fill((project_in, dwconv, project_out))
        ctx.save_for_backward(x, gain, offset, project_in, dwconv, project_out)
        y = empty(*x.shape)
        cpu.check(x, op.channels, y, x.shape)
        first, taps, last = op.weights.forward
        cpu.Call("gdfn", arguments(x, y, first, taps, last, True, gain, offset, flat(*x.shape)))()
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        op, (x, gain, offset, *weights) = ctx.op, ctx.saved_tensors
        dy, dx, d_gain, d_offset = laid_out(dy), empty(*x.shape), *map(torch.empty_like, (gain, offset))
        op.weights.fill_again(weights, ctx.filled)
        written = workspace(op.weights.gradient_floats)
        first, taps, last = op.weights.forward
        forward = arguments(x, x, first, taps, last, True, gain, offset, flat(*x.shape))
        cpu.Call("gdfn_backward", _Args(forward, cpu.image(dy), cpu.image(dx), *map(cpu.address, op.weights.back),
                                         written, d_gain.data_ptr(), d_offset.data_ptr()))()  # fmt: skip
        return dx, d_gain, d_offset, *op.weights.spread(written, weights), None
