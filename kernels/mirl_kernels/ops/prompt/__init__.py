"""The prompt block: learned prompts mixed by what the features look like."""

from __future__ import annotations

from collections import Counter
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.ops.conv import PackedConv, conv_quantities, taps_fit
from mirl_kernels.ops.prompt.reference import prompt as reference

__all__ = ["PackedPrompt", "reference"]


_WINDOW = [(0, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


class _Args(Structure):
    _fields_ = [("x", cpu.Image), ("y", cpu.Image), ("size", cpu.Size), ("linear_weight", c_void_p),
                ("linear_bias", c_void_p), ("prompt_param", c_void_p), ("count", c_int64), ("channels", c_int64),
                ("side", c_int64), ("conv3x3", c_void_p), ("scratch", c_void_p), ("threads", c_int64)]  # fmt: skip


def prepare(x: Tensor, out: Tensor, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor,
        scratch: Tensor) -> cpu.Call:  # fmt: skip
    """What computes ``out`` = the prompts for x; conv3x3 is packed."""
    _, count, channels, side, _ = prompt_param.shape
    args = _Args(cpu.image(x), cpu.image(out), cpu.size(x), *map(cpu.floats, (linear_weight, linear_bias, prompt_param)),
                 count, channels, side, cpu.address(conv3x3), scratch.data_ptr())  # fmt: skip
    return cpu.Call("prompt", args, x, out, linear_weight, linear_bias, prompt_param, conv3x3, scratch)


@torch.library.custom_op("mirl::prompt", mutates_args=())
def op(
    x: Tensor, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor
) -> Tensor:
    """The prompts for x (B, C, H, W), by a packed convolution."""
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape[0], prompt_param.shape[2], *x.shape[2:])
    cpu.check(x, linear_weight.shape[1], out, out.shape)
    cpu.expect(conv3x3, out.shape[1])
    prepare(x, out, linear_weight, linear_bias, prompt_param, conv3x3, torch.empty_like(out))()
    return out


@op.register_fake
def _(x: Tensor, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], prompt_param.shape[2], *x.shape[2:])


class PackedPrompt(cpu.Packed):
    """The weights of one prompt block, its convolution by surviving weights; arguments as in `reference`. Shapes that
    do not belong together are refused, and prompts that are not square, by a ValueError."""

    linear_weight: Tensor
    linear_bias: Tensor
    prompt_param: Tensor
    conv3x3: Tensor

    def __init__(
        self, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor
    ) -> None:
        super().__init__()
        for name, value in (
            ("linear_weight", linear_weight),
            ("linear_bias", linear_bias),
            ("prompt_param", prompt_param),
        ):
            self.register_buffer(name, value.detach().float().contiguous())
        self.register_buffer("conv3x3", PackedConv(conv3x3).packed)
        self._expect_fit(linear_weight=linear_weight, prompt_param=prompt_param, conv3x3=conv3x3)

    def _fits(self) -> bool:
        _, count, prompts, height, width = self.prompt_param.shape
        mixed = height == width and len(self.linear_weight) == self.linear_bias.numel() == count
        return mixed and taps_fit(self.conv3x3, prompts, prompts, _WINDOW)

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        return batch * self.prompt_param.shape[2] * height * width

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """What a call on (B, C, H, W) must do; a bilinear pixel takes four multiply-adds."""
        _, count, channels, side, _ = self.prompt_param.shape
        inputs, pixels, kept = self.linear_weight.shape[1], batch * height * width, cpu.kept(self.conv3x3)
        macs = (kept + 4 * channels) * pixels + batch * count * channels * side * side
        return cpu.Work(macs, 4 * (inputs + channels) * pixels + 4 * self.prompt_param.numel() + 8 * kept)

    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        vectors, groups = cpu.groups(batch * height, width)
        inputs, channels = self.linear_weight.shape[1], self.prompt_param.shape[2]
        extra = Counter(
            {"mean": inputs * vectors, "resize": channels * vectors, "mix": batch * self.prompt_param.numel()}
        )
        return conv_quantities(self.conv3x3, vectors, groups) + extra

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """What computes ``out`` (B, P, H, W) = the prompts for x (B, C, H, W); ``scratch`` holds `scratch_floats`."""
        shape = (x.shape[0], self.prompt_param.shape[2], *x.shape[2:])
        cpu.check(
            x, self.linear_weight.shape[1], out, shape, scratch, self.scratch_floats(x.shape[0], *x.shape[2:])
        )
        assert scratch is not None  # prompts have pixels
        return prepare(x, out, self.linear_weight, self.linear_bias, self.prompt_param, self.conv3x3, scratch)

    def forward(self, x: Tensor) -> Tensor:
        return op(x, self.linear_weight, self.linear_bias, self.prompt_param, self.conv3x3)
