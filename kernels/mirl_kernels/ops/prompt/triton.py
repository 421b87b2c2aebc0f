"""Run the prompt block on GPUs.

It computes the means of the features, the mixture at the features' size, and its 3x3 convolution.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mirl_kernels.core.triton import Launch, Packed, Tile, Work, Workspace, counts_work_of, launch, nbytes
from mirl_kernels.core.triton.dependent import after_previous
from mirl_kernels.core.triton.finite import finite
from mirl_kernels.ops.conv.triton import TritonConv


@triton.jit(do_not_specialize=["plane"])  # a loop's end
def mean_kernel(x, mean, x_batch, plane, BLOCK_P: tl.constexpr, PDL: tl.constexpr):
    """Compute the mean (B, C), in float32, of each plane of x. The grid is (C, B)."""
    after_previous(PDL)
    batch = tl.program_id(1).to(tl.int64)
    x += batch * x_batch + tl.program_id(0).to(tl.int64) * plane
    total = tl.zeros([BLOCK_P], tl.float32)
    for first in range(0, plane, BLOCK_P):
        pixel = first + tl.arange(0, BLOCK_P)
        total += tl.load(x + pixel, pixel < plane, 0.0).to(tl.float32)
    tl.store(mean + batch * tl.num_programs(0) + tl.program_id(0), tl.sum(total) / plane)


@counts_work_of(mean_kernel)
def _mean_work(launch: Launch) -> Work:
    a, (channels, batch, _) = launch.arguments, launch.grid
    read = channels * batch * a["plane"] * a["x"].itemsize
    return Work(
        read=read,
        written=nbytes(a["mean"]),
        fetched=read,
        macs=0,
        trips=(channels * batch * triton.cdiv(a["plane"], a["BLOCK_P"]),),
    )


@triton.jit
def mixture_kernel(
    mean,
    linear,
    bias,
    prompts,
    y,
    y_batch,
    height,
    width,
    channels,
    count,
    size,
    planes,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute y (B, P, H, W) = bilinear(sum of softmax(linear @ mean + bias) * prompts).

    prompts are (N, P, S, S). They are interpolated as F.interpolate does it without aligned corners. The grid
    is (tiles of pixels, P, B).
    """
    after_previous(PDL)
    batch, p = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    n = tl.arange(0, BLOCK_N)
    known = n < count
    score = tl.load(bias + n, known, float("-inf"))
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        weight = tl.load(
            linear + n[:, None] * channels + c[None, :], known[:, None] & (c < channels)[None, :], 0.0
        )
        score += tl.sum(weight * tl.load(mean + batch * channels + c, c < channels, 0.0)[None, :], 1)
    score = tl.exp(score - tl.max(score, 0))
    score /= tl.sum(score, 0)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixel < height * width
    at_y = tl.maximum((pixel // width + 0.5) * (size / height) - 0.5, 0.0)
    at_x = tl.maximum((pixel % width + 0.5) * (size / width) - 0.5, 0.0)
    top, left = tl.minimum(at_y.to(tl.int32), size - 1), tl.minimum(at_x.to(tl.int32), size - 1)
    bottom, right = tl.minimum(top + 1, size - 1), tl.minimum(left + 1, size - 1)
    down, across = (at_y - top)[None, :], (at_x - left)[None, :]
    base = prompts + (n * planes + p)[:, None] * (size * size)
    here = known[:, None] & inside[None, :]
    upper = tl.load(base + (top * size + left)[None, :], here, 0.0) * (1 - across)
    upper += tl.load(base + (top * size + right)[None, :], here, 0.0) * across
    lower = tl.load(base + (bottom * size + left)[None, :], here, 0.0) * (1 - across)
    lower += tl.load(base + (bottom * size + right)[None, :], here, 0.0) * across
    mixed = tl.sum(score[:, None] * (upper * (1 - down) + lower * down), 0)
    tl.store(y + batch * y_batch + p * height * width + pixel, finite(mixed, y.dtype.element_ty), inside)


@counts_work_of(mixture_kernel)
def _mixture_work(launch: Launch) -> Work:
    a, (tiles, planes, batch) = launch.arguments, launch.grid
    programs = tiles * planes * batch
    tables = nbytes(a["linear"], a["bias"]) + a["channels"] * 4
    prompts = nbytes(a["prompts"]) // planes
    return Work(
        read=nbytes(a["linear"], a["bias"], a["mean"], a["prompts"]),
        written=nbytes(a["y"]),
        fetched=programs * (tables + prompts),
        macs=0,
        trips=(programs * triton.cdiv(a["channels"], a["BLOCK_C"]),),
    )


class TritonPrompt(Packed):
    """Hold the weights of one prompt block for the Triton kernels.

    The arguments are those of `reference`.

    Args:
        linear_weight: (N, C).
        linear_bias: (N,).
        prompt_param: (1, N, P, S, S).
        conv3x3: (P, P, 3, 3).
        dtype: The type of activations and of the convolution's weights. The mixture is computed in float32.
    """

    linear: Tensor
    linear_bias: Tensor
    prompts: Tensor

    def __init__(
        self,
        linear_weight: Tensor,
        linear_bias: Tensor,
        prompt_param: Tensor,
        conv3x3: Tensor,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__(dtype)
        self.register_buffer("linear", linear_weight.detach().float())
        self.register_buffer("linear_bias", linear_bias.detach().float())
        self.register_buffer("prompts", prompt_param.detach()[0].float().contiguous())
        self.conv = TritonConv(conv3x3, dtype=dtype)

    def forward(self, x: Tensor, y: Tensor | None = None, workspace: Workspace | None = None) -> Tensor:
        """Return the prompt for the features x.

        Args:
            x: (B, C, H, W) of ``dtype``.
            y: The tensor to write to, (B, P, H, W), or None for a new one.
            workspace: What it shares with other ops; by default a workspace of its own.
        """
        workspace = workspace or Workspace()
        batch, channels, height, width = x.shape
        count, planes, size, _ = self.prompts.shape
        y = self.checked_output(x, self.linear.shape[1], y, (batch, planes, height, width))
        mean = torch.empty(batch, channels, dtype=torch.float32, device=x.device)
        launch(
            workspace,
            mean_kernel,
            lambda sizes: (channels, batch, 1),
            *(x, mean, x.stride(0), height * width),
            tiles=[Tile({"BLOCK_P": 1024}, 4)],
        )
        mixed = x.new_empty(batch, planes, height, width)
        launch(
            workspace,
            mixture_kernel,
            lambda sizes: (triton.cdiv(height * width, sizes["BLOCK_P"]), planes, batch),
            *(mean, self.linear, self.linear_bias, self.prompts, mixed, mixed.stride(0)),
            *(height, width, channels, count, size, planes),
            BLOCK_N=triton.next_power_of_2(count),
            BLOCK_C=64,
            tiles=[Tile({"BLOCK_P": 256}, 4)],
        )
        return self.conv(mixed, y, workspace)
