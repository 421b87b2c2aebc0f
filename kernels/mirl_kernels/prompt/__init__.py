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


class PackedPrompt(_cpu.Packed):
    """The weights of one prompt block, its convolution by surviving weights; arguments as in `reference`."""

    def __init__(self, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor) -> None:
        self._linear = linear_weight.float().contiguous(), linear_bias.float().contiguous()
        self._prompts = prompt_param.float().contiguous()
        self._conv = _cpu.Chunks(conv3x3.flatten(1))

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        return batch * self._prompts.shape[2] * height * width

    def work(self, batch: int, height: int, width: int) -> _cpu.Work:
        """What a call on (B, C, H, W) must do; a bilinear pixel takes four multiply-adds."""
        _, count, channels, side, _ = self._prompts.shape
        inputs, pixels = self._linear[0].shape[1], batch * height * width
        macs = (self._conv.kept + 4 * channels) * pixels + batch * count * channels * side * side
        return _cpu.Work(macs, 4 * (inputs + channels) * pixels + 4 * self._prompts.numel() + 8 * self._conv.kept)

    def __call__(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> None:
        """``out`` (B, P, H, W) = the prompts for x (B, C, H, W); ``scratch`` holds `scratch_floats`."""
        _, count, channels, side, _ = self._prompts.shape
        weight, bias = self._linear
        _cpu.check(x, weight.shape[1], out, (x.shape[0], channels, *x.shape[2:]), scratch,
                   self.scratch_floats(x.shape[0], *x.shape[2:]))  # fmt: skip
        assert scratch is not None  # prompts have pixels
        args = _Args(_cpu.image(x), _cpu.image(out), _cpu.size(x), weight.data_ptr(), bias.data_ptr(),
                     self._prompts.data_ptr(), count, channels, side, self._conv.address, self._conv.count,
                     self._conv.column.data_ptr(), scratch.data_ptr(),
                     torch.get_num_threads())  # fmt: skip
        _cpu.call("prompt", args)
