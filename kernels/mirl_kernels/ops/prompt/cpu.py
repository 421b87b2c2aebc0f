"""Pack a prompt block for the C++ kernel, and call that."""

from __future__ import annotations

from collections import Counter
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import PackedMatrix, Quantity
from mirl_kernels.ops.conv.cpu import PackedConv, conv_quantities, taps_fit

_WINDOW = [(0, dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


class PromptArgs(Structure):
    """Hold the argument of the kernel (``MirlPrompt`` of abi.h)."""

    _fields_ = [
        ("x", cpu.Image),
        ("y", cpu.Image),
        ("size", cpu.Size),
        ("linear_weight", c_void_p),
        ("linear_bias", c_void_p),
        ("prompt_param", c_void_p),
        ("count", c_int64),
        ("channels", c_int64),
        ("side", c_int64),
        ("conv3x3", c_void_p),
        ("scratch", c_void_p),
        ("threads", c_int64),
    ]


def prepare(
    x: Tensor,
    out: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor,
    prompt_param: Tensor,
    conv3x3: Tensor,
    scratch: Tensor,
) -> cpu.Call:
    """Return the call that computes ``out`` = the prompts for x.

    Args:
        x: (B, C, H, W).
        out: The result, (B, P, H, W).
        linear_weight: As in the definition, `prompt`.
        linear_bias: Likewise.
        prompt_param: Likewise.
        conv3x3: The packed convolution.
        scratch: B * P * H * W floats.
    """
    _, count, channels, side, _ = prompt_param.shape
    args = PromptArgs(
        cpu.image(x),
        cpu.image(out),
        cpu.size(x),
        *map(cpu.float_address, (linear_weight, linear_bias, prompt_param)),
        count,
        channels,
        side,
        cpu.address(conv3x3),
        scratch.data_ptr(),
    )
    return cpu.Call("prompt", args, x, out, linear_weight, linear_bias, prompt_param, conv3x3, scratch)


@torch.library.custom_op("mirl::prompt", mutates_args=())
def op(
    x: Tensor, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor
) -> Tensor:
    """Return the prompts for x, by a packed convolution.

    Args:
        x: (B, C, H, W).
        linear_weight: As in the definition, `prompt`.
        linear_bias: Likewise.
        prompt_param: Likewise.
        conv3x3: The packed convolution.

    Returns:
        (B, P, H, W).
    """
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape[0], prompt_param.shape[2], *x.shape[2:])
    cpu.check(x, linear_weight.shape[1], out, out.shape)
    PackedMatrix(conv3x3).expect(out.shape[1])
    prepare(x, out, linear_weight, linear_bias, prompt_param, conv3x3, torch.empty_like(out))()
    return out


@op.register_fake
def _(x: Tensor, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], prompt_param.shape[2], *x.shape[2:])


class PackedPrompt(cpu.Packed):
    """Keep the weights of one prompt block, its convolution by surviving weights.

    The constructor takes what the definition, `prompt`, takes after x.

    Raises:
        ValueError: If the shapes do not belong together, or the prompts are not square.
    """

    multiplied = ("conv3x3",)
    linear_weight: Tensor
    linear_bias: Tensor
    prompt_param: Tensor
    conv3x3: Tensor

    def __init__(
        self, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor
    ) -> None:
        super().__init__()
        plain = {"linear_weight": linear_weight, "linear_bias": linear_bias, "prompt_param": prompt_param}
        for name, value in plain.items():
            self.register_buffer(name, value.detach().float().contiguous())
        self.register_buffer("conv3x3", PackedConv(conv3x3).packed)
        self._expect_fit(linear_weight=linear_weight, prompt_param=prompt_param, conv3x3=conv3x3)

    def matrices(self) -> tuple[Tensor]:
        """Return the packed matrices among the buffers."""
        return (self.conv3x3,)

    def _fits(self) -> bool:
        _, count, prompts, height, width = self.prompt_param.shape
        mixed = height == width and len(self.linear_weight) == self.linear_bias.numel() == count
        return mixed and taps_fit(self.conv3x3, prompts, prompts, _WINDOW)

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        """Return how many floats of scratch memory a call on (batch, C, height, width) takes."""
        return batch * self.prompt_param.shape[2] * height * width

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """Return what a call on (batch, C, height, width) must do.

        A bilinear pixel takes four multiply-adds.
        """
        _, count, channels, side, _ = self.prompt_param.shape
        inputs, pixels = self.linear_weight.shape[1], batch * height * width
        nnz = PackedMatrix(self.conv3x3).nnz
        macs = (nnz + 4 * channels) * pixels + batch * count * channels * side * side
        return cpu.Work(macs, 4 * (inputs + channels) * pixels + 4 * self.prompt_param.numel() + 8 * nnz)

    def kernel_quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return the quantities of the kernel itself."""
        vectors, _ = cpu.pixel_groups(batch * height, width)
        inputs, channels = self.linear_weight.shape[1], self.prompt_param.shape[2]
        return conv_quantities(self.conv3x3, batch * height, width) + Counter(
            {
                Quantity.MEAN: inputs * vectors,
                Quantity.RESIZE: channels * vectors,
                Quantity.MIX: batch * self.prompt_param.numel(),
            }
        )

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """Return the call that computes ``out`` (B, P, H, W) = the prompts for x (B, C, H, W).

        Args:
            x: The input.
            out: The result.
            scratch: At least `scratch_floats` floats.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        shape = (x.shape[0], self.prompt_param.shape[2], *x.shape[2:])
        floats = self.scratch_floats(x.shape[0], *x.shape[2:])
        cpu.check(x, self.linear_weight.shape[1], out, shape, scratch, floats)
        assert scratch is not None  # prompts have pixels
        return prepare(x, out, self.linear_weight, self.linear_bias, self.prompt_param, self.conv3x3, scratch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the prompts for x.

        Raises:
            BackendError: If the kernel does not take x.
        """
        return op(x, self.linear_weight, self.linear_bias, self.prompt_param, self.conv3x3)
