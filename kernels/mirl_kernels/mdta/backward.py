"""MDTA in training: by surviving weights forward and backward, nothing but its input kept in between."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from mirl_kernels import _cpu
from mirl_kernels._cpu.training import Beginning, Product, workspace
from mirl_kernels.mdta import Args, arguments, ordered_channels

_CUT = 8  # into so many tasks the Gram matrix is cut, on any number of threads


class _Args(Structure):
    _fields_ = [("mdta", Args), ("dy", _cpu.Image), ("dx", _cpu.Image), ("qkv_transposed", c_void_p), ("dwconv_flipped", c_void_p),
                ("project_out_transposed", c_void_p), ("gradient", c_void_p), ("scratch", c_void_p), ("threads", c_int64)]  # fmt: skip


class TrainableMDTA:
    """MDTA (`mirl_kernels.mdta.reference`) with the surviving weights of masks: bool, in the weights' shapes."""

    def __init__(self, qkv: Tensor, dwconv: Tensor, project_out: Tensor, heads: int) -> None:
        live, rows = ordered_channels(qkv.flatten(1), dwconv.flatten(1), project_out.flatten(1), heads)
        self.live = [index.int().contiguous() for index in live]
        self.beginning, self.out = Beginning(qkv, dwconv, rows), Product(project_out)
        self.channels, self.hidden = len(project_out), len(rows)

    def __call__(self, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, qkv: Tensor, dwconv: Tensor, temperature: Tensor,
                 project_out: Tensor) -> Tensor:  # fmt: skip
        """MDTA(x), x (B, C, H, W) float32; differentiable once, by all arguments. Gradients of pruned weights are zero,
        and those of what a q or k channel that is zero everywhere is divided by its norm."""
        result: Tensor = _Function.apply(x, norm_weight, norm_bias, qkv, dwconv, temperature, project_out, self)
        return result


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, offset: Tensor, qkv: Tensor, dwconv: Tensor, temperature: Tensor,
                project_out: Tensor, op: TrainableMDTA) -> Tensor:  # fmt: skip
        x = _cpu.with_rows(x)
        ctx.op = op
        first, taps = op.beginning.pack(gain, offset, qkv, dwconv)
        last = op.out.pack(project_out)
        ctx.packed = first, taps, last
        ctx.save_for_backward(x, gain, offset, qkv, dwconv, temperature, project_out)
        y = x.new_empty(x.shape)
        _cpu.check(x, op.channels, y, x.shape)
        scratch = workspace(x.shape[0] * x.shape[2] * _cpu.padded(x.shape[3]) * len(op.live[2]))
        _cpu.Call("mdta", arguments(x, y, first, taps, last, temperature.contiguous(), op.live, True, scratch, _CUT))()
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        op, (x, gain, offset, qkv, dwconv, temperature, project_out) = ctx.op, ctx.saved_tensors
        dy, dx, temperature = _cpu.with_rows(dy), x.new_empty(x.shape), temperature.contiguous()
        back = (*op.beginning.pack_back(gain, qkv, dwconv), op.out.pack_back(project_out))
        lengths = [op.out.gradient_length, *op.beginning.gradient_lengths, temperature.numel()]
        gradient = x.new_empty(sum(lengths))
        lines = x.shape[0] * x.shape[2] * _cpu.padded(x.shape[3])
        v = workspace(lines * (len(op.live[2]) + op.hidden))
        scratch = v[lines * len(op.live[2]) :]
        first, taps, last = ctx.packed
        forward = arguments(x, x, first, taps, last, temperature, op.live, True, v, _CUT)
        _cpu.Call("mdta_backward", _Args(forward, _cpu.image(dy), _cpu.image(dx), *map(_cpu.address, back),
                                         gradient.data_ptr(), scratch.data_ptr()))()  # fmt: skip
        d_out, *rest, d_temperature = gradient.split(lengths)
        d_gain, d_offset, d_qkv, d_taps = op.beginning.gradients(*rest, gain, offset, qkv)
        d_project = op.out.gradient(d_out)
        return dx, d_gain, d_offset, d_qkv, d_taps, d_temperature.view_as(temperature), d_project, None
