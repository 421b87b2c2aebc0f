"""Lay out images as the kernels read and write them.

The kernels take any (B, C, H, W) float32 image whose rows are contiguous. They are fastest on images from
`empty`.
"""

from __future__ import annotations

from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core.cpu.library import Call, Image, Size, kernel_rule
from mirl_kernels.errors import BackendError


class TransposeArgs(Structure):
    """Hold the argument of the kernel that transposes (``MirlTranspose`` of abi.h)."""

    _fields_ = [
        ("x", c_void_p),
        ("y", c_void_p),
        ("batch", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("x_batch", c_int64),
        ("x_row", c_int64),
        ("threads", c_int64),
    ]


def padded(floats: int) -> int:
    """Return how far apart the kernels lay rows of so many floats."""
    return kernel_rule("padded", floats)


def transposed_columns(channels: int) -> int:
    """Return how many columns a transposed panel of so many channels has."""
    return kernel_rule("transposed_columns", channels)


def empty(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Return an uninitialised (B, C, H, W) image, laid out for the kernels.

    All channels of an image row lie together, so that a strip of rows is one stretch of memory. Slices of the
    channels are images too.
    """
    image = torch.empty(batch, height, channels, padded(width), dtype=torch.float32)
    return image.permute(0, 2, 1, 3)[..., :width]


def result(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return an uninitialised image for the result of an op on x.

    Raises:
        BackendError: If the result has no pixel.
    """
    if height < 1 or width < 1:
        raise BackendError(
            f"input {tuple(x.shape)} is smaller than the kernel; its result would be {height}x{width}"
        )
    return x.new_empty(x.shape[0], channels, height, width)


def with_rows(x: Tensor) -> Tensor:
    """Return x, or a copy of it whose rows are contiguous."""
    if x.ndim == 4 and (x.stride(3) == 1 or x.shape[3] == 1):
        return x
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 4 or not x.numel() or x.stride(1) != 1:
        return x.contiguous()
    batch, channels, height, width = x.shape
    if height > 1 and x.stride(2) != width * x.stride(3):
        return x.contiguous()
    y = x.new_empty(x.shape)  # channels_last, which PyTorch takes long to copy
    args = TransposeArgs(
        x.data_ptr(), y.data_ptr(), batch, height * width, channels, x.stride(0), x.stride(3)
    )
    Call("transpose", args, x, y)()
    return y


def image(x: Tensor) -> Image:
    """Return x as the kernels take it.

    Args:
        x: (B, C, H, W) float32 on the CPU, whose rows are contiguous.

    Raises:
        BackendError: If x is something else.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 4:
        raise BackendError(
            f"input is {x.dtype} {tuple(x.shape)} on {x.device}; expected float32 (B, C, H, W) on the CPU"
        )
    if x.stride(3) != 1 and x.shape[3] > 1:
        raise BackendError(f"input has strides {x.stride()}; expected contiguous rows (call .contiguous())")
    return Image(x.data_ptr(), *x.stride()[:3])


def size(x: Tensor, flat: bool = False) -> Size:
    """Return the size of (B, C, H, W) as the kernels take it.

    Args:
        x: The image.
        flat: The rows of all images of this size are short and follow each other in memory (``MirlSize`` of
            abi.h).
    """
    return Size(*x.shape, flat)


def float_address(values: Tensor) -> int:
    """Return where the kernels find a float32 vector or matrix that is not packed.

    Raises:
        BackendError: If it was moved from the CPU, cast, or is not contiguous.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32 or not values.is_contiguous():
        raise BackendError(f"weights are {values.dtype} on {values.device}; expected float32 on the CPU")
    return values.data_ptr()


def optional_address(values: Tensor | None) -> int | None:
    """Return where a tensor's memory begins, or None for no tensor."""
    return None if values is None else values.data_ptr()


def check(
    x: Tensor,
    channels: int,
    out: Tensor,
    shape: tuple[int, ...],
    scratch: Tensor | None = None,
    floats: int = 0,
) -> None:
    """Check the shapes of a call, because the kernels check nothing.

    Args:
        x: The input.
        channels: How many channels the op reads.
        out: The output.
        shape: The shape that the op writes.
        scratch: The scratch memory, if there is any.
        floats: How many floats of scratch memory the op needs.

    Raises:
        BackendError: If x has no pixel or other channels, ``out`` another shape, or ``scratch`` another dtype
            or too few floats.
    """
    if 0 in x.shape or 0 in out.shape:
        raise BackendError(f"input {tuple(x.shape)} and output {tuple(out.shape)}; expected a pixel or more")
    if x.shape[1] != channels or out.shape != shape:
        raise BackendError(
            f"input {tuple(x.shape)} and output {tuple(out.shape)};"
            f" expected {channels} channels in, {shape} out"
        )
    if floats and (scratch is None or scratch.dtype != torch.float32 or scratch.numel() < floats):
        actual = "none" if scratch is None else f"{scratch.numel()} of {scratch.dtype}"
        raise BackendError(f"scratch is {actual}; expected {floats} of torch.float32")


def check_pixels(x: Tensor, channels: int) -> None:
    """Check an input whose pixels have their channels side by side.

    Args:
        x: The input.
        channels: How many channels the op reads.

    Raises:
        BackendError: If x is not (B, H, W, ``channels``) float32 on the CPU, or has no pixel.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 4 or x.shape[3] != channels:
        raise BackendError(
            f"input is {x.dtype} {tuple(x.shape)} on {x.device};"
            f" expected float32 (B, H, W, {channels}) on the CPU"
        )
    if not x.numel():
        raise BackendError(f"input is {tuple(x.shape)}; expected a pixel or more")
