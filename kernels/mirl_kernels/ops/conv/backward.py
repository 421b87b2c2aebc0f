"""Train a convolution by its surviving weights, forward and backward."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu.training import Pattern, Weights, empty, workspace
from mirl_kernels.ops.conv.cpu import prepare
from mirl_kernels.ops.conv.window import Window


class ConvBackwardArgs(Structure):
    """Hold the argument of the backward kernel (``MirlConvBackward`` of abi.h)."""

    _fields_ = [
        ("x", cpu.Image),
        ("dy", cpu.Image),
        ("size", cpu.Size),
        ("weight", c_void_p),
        ("gradient", c_void_p),
        ("threads", c_int64),
    ]


class TrainableConv:
    """Run a convolution with the weights that survive a mask.

    The convolution, `mirl_kernels.ops.conv.conv`, keeps the size of its input.

    Args:
        weight: Mask, (O, C, k, l) bool, with odd k and l.
    """

    def __init__(self, weight: Tensor) -> None:
        self.outputs, self.inputs = weight.shape[:2]
        window = torch.tensor(Window.of(weight, (1, 1), None, (1, 1)).taps())
        places = torch.arange(weight.numel()).view(weight.shape)

        def packed(alive: Tensor, places: Tensor) -> Pattern:
            channels = torch.arange(alive.shape[1]).repeat_interleave(len(window))
            taps = torch.cat([channels[:, None], window.repeat(alive.shape[1], 1)[:, 1:]], 1)
            first = places.flatten(1)[:, 0]
            return Pattern(alive.flatten(1), first, places[0].flatten() - first[0], taps)

        back = (t.transpose(0, 1).flip(2, 3) for t in (weight, places))
        self.weights = Weights([packed(weight, places)], [packed(*back)])

    def __call__(self, x: Tensor, weight: Tensor, shuffle: int = 1, residual: Tensor | None = None) -> Tensor:
        """Return the convolution of x, shuffled, plus a residual; differentiable once by all arguments.

        Gradients of pruned weights are zero.

        Args:
            x: (B, C, H, W) float32.
            weight: In the shape of the mask.
            shuffle: As in the definition.
            residual: In the shape of the result, or None.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        y: Tensor = _Function.apply(x, weight, residual, self, shuffle)
        return y


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, residual: Tensor | None, op: TrainableConv, shuffle: int
    ) -> Tensor:
        x, ctx.op, ctx.filled, ctx.shuffle = cpu.with_rows(x), op, op.weights.fill([weight]), shuffle
        ctx.save_for_backward(x, weight)
        batch, _, height, width = x.shape
        r, u = max(shuffle, 1), max(-shuffle, 1)
        y = empty(batch, op.outputs * u * u // (r * r), height * r // u, width * r // u)
        added = None if residual is None else cpu.with_rows(residual)
        identity = cpu.Activation.of("none")
        prepare(x, y, op.weights.forward[0], op.inputs, (1, 1), shuffle, identity, added)()
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        op, (x, weight) = ctx.op, ctx.saved_tensors
        inner = dy
        if ctx.shuffle > 1:
            inner = F.pixel_unshuffle(dy, ctx.shuffle)
        elif ctx.shuffle < -1:
            inner = F.pixel_shuffle(dy, -ctx.shuffle)
        inner, dx = cpu.with_rows(inner), None
        op.weights.fill_again([weight], ctx.filled)
        if ctx.needs_input_grad[0]:
            dx = empty(*x.shape)
            identity = cpu.Activation.of("none")
            prepare(inner, dx, op.weights.back[0], op.outputs, (1, 1), 1, identity)()
        written = workspace(op.weights.gradient_floats)
        args = ConvBackwardArgs(
            cpu.image(x), cpu.image(inner), cpu.size(x), cpu.address(op.weights.forward[0]), written
        )
        cpu.Call("conv_backward", args)()
        (gradient,) = op.weights.spread(written, [weight])
        return dx, gradient, dy if ctx.needs_input_grad[2] else None, None, None
