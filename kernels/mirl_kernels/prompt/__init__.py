"""The prompt block: learned prompts mixed by what the features look like."""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels import _cpu
from mirl_kernels.prompt.reference import prompt as reference

__all__ = ["PackedPrompt", "reference"]


class _Args(Structure):
    _fields_ = [("x", _cpu.Image), ("y", _cpu.Image), ("size", _cpu.Size), ("linear_weight", c_void_p),
                ("linear_bias", c_void_p), ("prompt_param", c_void_p), ("count", c_int64), ("channels", c_int64),
                ("side", c_int64), ("conv3x3", c_void_p), ("chunks", c_int64), ("column", c_void_p), ("scratch", c_void_p), ("threads", c_int64)]  # fmt: skip


class PackedPrompt:
    """The weights of one prompt block, its convolution by surviving weights; arguments as in `reference`."""

    def __init__(self, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor) -> None:
        self._linear = linear_weight.float().contiguous(), linear_bias.float().contiguous()
        self._prompts = prompt_param.float().contiguous()
        self._conv = _cpu.Chunks(conv3x3.flatten(1))

    def scratch_floats(self, x: Tensor) -> int:
        """How many floats of scratch memory a call on x takes."""
        _, _, channels, side, _ = self._prompts.shape
        return x.shape[0] * channels * x.shape[2] * x.shape[3]

    def __call__(self, x: Tensor, out: Tensor, scratch: Tensor) -> None:
        """``out`` (B, P, H, W) = the prompts for x (B, C, H, W); ``scratch`` holds `scratch_floats`."""
        _, count, channels, side, _ = self._prompts.shape
        weight, bias = self._linear
        _cpu.check(x, weight.shape[1], out, (x.shape[0], channels, *x.shape[2:]), scratch, self.scratch_floats(x))
        args = _Args(_cpu.image(x), _cpu.image(out), _cpu.size(x), weight.data_ptr(), bias.data_ptr(),
                     self._prompts.data_ptr(), count, channels, side, self._conv.address, self._conv.count,
                     self._conv.column.data_ptr(), scratch.data_ptr(),
                     torch.get_num_threads())  # fmt: skip
        _cpu.call("prompt", args)
