"""Train a GDFN by its surviving weights, forward and backward; nothing of hidden size is kept in between."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Layer
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
from mirl_kernels.ops.gdfn.cpu import GdfnArgs, Operands, arguments
from mirl_kernels.ops.gdfn.liveness import ordered_pairs


class GdfnBackwardArgs(Structure):
    """Hold the argument of the backward kernel (``MirlGdfnBackward`` of abi.h)."""

    _fields_ = [
        ("gdfn", GdfnArgs),
        ("dy", cpu.Image),
        ("dx", cpu.Image),
        ("project_in_transposed", c_void_p),
        ("dwconv_flipped", c_void_p),
        ("project_out_transposed", c_void_p),
        ("gradient", c_void_p),
        ("d_gain", c_void_p),
        ("d_offset", c_void_p),
        ("threads", c_int64),
    ]


class TrainableGDFN:
    """Run GDFN (`mirl_kernels.ops.gdfn.gdfn`) with the weights that survive masks.

    Args:
        project_in: Mask, bool, in the weight's shape.
        dwconv: Mask, likewise.
        project_out: Mask, likewise.
    """

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
        """Return GDFN(x), differentiable once by all arguments.

        Gradients of pruned weights are zero.

        Args:
            x: (B, C, H, W) float32.
            norm_weight: (C,) gain of the norm.
            norm_bias: (C,) bias of the norm.
            project_in: Weight, in the shape of its mask.
            dwconv: Weight, likewise.
            project_out: Weight, likewise.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        y: Tensor = _Function.apply(x, norm_weight, norm_bias, project_in, dwconv, project_out, self)
        return y

    def arguments(self, x: Tensor, y: Tensor, norm: Layer) -> GdfnArgs:
        """Return the argument of the forward kernel."""
        first, taps, last = self.weights.forward
        return arguments(x, y, Operands(first, taps, last, True), norm, flat(*x.shape))


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gain: Tensor,
        offset: Tensor,
        project_in: Tensor,
        dwconv: Tensor,
        project_out: Tensor,
        op: TrainableGDFN,
    ) -> Tensor:
        x, gain, offset = laid_out(x), plain(gain), plain(offset)
        ctx.op, ctx.filled = op, op.weights.fill((project_in, dwconv, project_out))
        ctx.save_for_backward(x, gain, offset, project_in, dwconv, project_out)
        y = empty(*x.shape)
        cpu.check(x, op.channels, y, x.shape)
        cpu.Call("gdfn", op.arguments(x, y, Layer(gain, offset)))()
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        op, (x, gain, offset, *weights) = ctx.op, ctx.saved_tensors
        dy, dx, d_gain, d_offset = laid_out(dy), empty(*x.shape), *map(torch.empty_like, (gain, offset))
        op.weights.fill_again(weights, ctx.filled)
        written = workspace(op.weights.gradient_floats)
        args = GdfnBackwardArgs(
            op.arguments(x, x, Layer(gain, offset)),
            cpu.image(dy),
            cpu.image(dx),
            *map(cpu.address, op.weights.back),
            written,
            d_gain.data_ptr(),
            d_offset.data_ptr(),
        )
        cpu.Call("gdfn_backward", args)()
        return dx, d_gain, d_offset, *op.weights.spread(written, weights), None
