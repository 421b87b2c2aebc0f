"""GDFN in training: by surviving weights forward and backward, nothing of hidden size kept in between."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from mirl_kernels import _cpu
from mirl_kernels._cpu.training import Beginning, Product, workspace
from mirl_kernels.gdfn import ordered_pairs, prepare


class _Args(Structure):
    _fields_ = [("x", _cpu.Image), ("dy", _cpu.Image), ("dx", _cpu.Image), ("size", _cpu.Size), ("project_in", c_void_p),
                ("dwconv", c_void_p), ("project_out", c_void_p), ("project_in_transposed", c_void_p),
                ("dwconv_flipped", c_void_p), ("project_out_transposed", c_void_p), ("gradient", c_void_p),
                ("scratch", c_void_p), ("threads", c_int64)]  # fmt: skip


class TrainableGDFN:
    """GDFN (`mirl_kernels.gdfn.reference`) with the surviving weights of masks: bool, in the weights' shapes."""

    def __init__(self, project_in: Tensor, dwconv: Tensor, project_out: Tensor) -> None:
        live, rows = ordered_pairs(project_in.flatten(1), dwconv.flatten(1), project_out.flatten(1))
        self.beginning, self.out = Beginning(project_in, dwconv, rows), Product(project_out, live)
        self.channels, self.hidden = len(project_out), len(rows)

    def __call__(
        self, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, project_in: Tensor, dwconv: Tensor, project_out: Tensor
    ) -> Tensor:
        """GDFN(x), x (B, C, H, W) float32; differentiable once, by all arguments. Gradients of pruned weights are zero."""
        result: Tensor = _Function.apply(x, norm_weight, norm_bias, project_in, dwconv, project_out, self)
        return result


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, project_in: Tensor, dwconv: Tensor, project_out: Tensor,
                op: TrainableGDFN) -> Tensor:  # fmt: skip
        x = _cpu.with_rows(x)
        ctx.op = op
        first, taps = op.beginning.pack(gain, offset, project_in, dwconv)
        last = op.out.pack(project_out)
        ctx.packed = first, taps, last
        ctx.save_for_backward(x, gain, offset, project_in, dwconv, project_out)
        y = x.new_empty(x.shape)
        _cpu.check(x, op.channels, y, x.shape)
        prepare(x, y, first, taps, last, True)()
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        op, (x, gain, offset, project_in, dwconv, project_out) = ctx.op, ctx.saved_tensors
        dy, dx = _cpu.with_rows(dy), x.new_empty(x.shape)
        back = (*op.beginning.pack_back(gain, project_in, dwconv),
                op.out.pack_back(project_out))  # fmt: skip
        lengths = [op.out.gradient_length, *op.beginning.gradient_lengths]
        gradient = x.new_empty(sum(lengths))
        scratch = workspace(x.shape[0] * x.shape[2] * op.hidden * _cpu.padded(x.shape[3]))
        args = _Args(_cpu.image(x), _cpu.image(dy), _cpu.image(dx), _cpu.size(x), *map(_cpu.address, (*ctx.packed, *back)),
                     gradient.data_ptr(), scratch.data_ptr())  # fmt: skip
        _cpu.Call("gdfn_backward", args)()
        d_out, *rest = gradient.split(lengths)
        return dx, *op.beginning.gradients(*rest, gain, offset, project_in), op.out.gradient(d_out), None
