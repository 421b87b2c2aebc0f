"""The C++ kernels: loading the library, and the structures of its C interface (``abi.h``)."""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from ctypes import Structure, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_LIBRARY = "libmirl_cpu.so"
CHUNK = 96  # columns whose panel fits the first-level cache
_PANEL = 64  # MIRL_PANEL of abi.h
DENSE = 0.55  # the density from which a product by rows takes longer than the whole matrix


class BackendError(RuntimeError):
    """A backend that cannot run here; the message is one line and says what to do."""


class Rows(Structure):
    """A sparse matrix by rows (``MirlRows``): what `pack_rows` makes of a dense one."""

    _fields_ = [("rows", c_int64), ("columns", c_int64), ("start", c_void_p), ("entry", c_void_p),
                ("bias", c_void_p), ("dense", c_void_p)]  # fmt: skip
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # keeps the memory that the pointers name

    @property
    def kept(self) -> int:
        """How many entries are not zero."""
        return len(self.tensors[1])


class Image(Structure):
    _fields_ = [("data", c_void_p), ("batch", c_int64), ("channel", c_int64), ("row", c_int64)]


class Size(Structure):
    _fields_ = [("batch", c_int64), ("channels", c_int64), ("height", c_int64), ("width", c_int64)]


def pack_rows(matrix: Tensor, bias: Tensor | None = None) -> Rows:
    """The nonzero entries of a (rows, columns) matrix, row by row; ``bias`` (rows,) is added to each."""
    rows, columns = matrix.nonzero(as_tuple=True)
    start = torch.zeros(matrix.shape[0] + 1, dtype=torch.int32)
    start[1:] = torch.bincount(rows, minlength=matrix.shape[0]).cumsum(0)
    entry = torch.empty(len(rows), 2, dtype=torch.int32)
    entry[:, 0] = columns * (4 * _PANEL)
    entry[:, 1] = matrix[rows, columns].float().view(torch.int32)
    offset = None if bias is None else bias.float().contiguous()
    whole = None
    if len(entry) > DENSE * matrix.numel():
        whole = torch.nn.functional.pad(matrix.float(), (0, 0, 0, -matrix.shape[0] % 4))
        whole = whole.view(-1, 4, matrix.shape[1]).transpose(1, 2).contiguous()
    kept = start, entry, offset, whole
    packed = Rows(*matrix.shape, *(None if t is None else t.data_ptr() for t in kept))
    packed.tensors = kept
    return packed


class Chunks:
    """A matrix cut into chunks of at most CHUNK columns, each packed by `pack_rows`. Columns of zeros are left
    out: ``column`` (number,) int32 says which are left."""

    def __init__(self, matrix: Tensor) -> None:
        used = (matrix != 0).any(0).nonzero()[:, 0]
        self.column = used.int()
        chunks = [pack_rows(matrix[:, part]) for part in used.split(CHUNK)] or [pack_rows(matrix[:, :0])]
        self._tensors = [chunk.tensors for chunk in chunks]
        self.count = len(chunks)
        self._rows = (Rows * self.count)(*chunks)
        self.address = ctypes.addressof(self._rows)
        self.kept = sum(chunk.kept for chunk in chunks)


@cache
def library() -> ctypes.CDLL:
    """The shared library; BackendError when it was not built or MIRL_CPU_ISA asks for the impossible."""
    path = next((p for folder in __path__ if (p := Path(folder, _LIBRARY)).exists()), None)
    if path is None:
        raise BackendError(
            "the C++ kernels were not built when mirl-sparse was installed; install a C++17 compiler (g++ or"
            ' clang++) and install mirl-sparse again, or use backend="reference"'
        )
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(f"{path} cannot be loaded ({error}); install mirl-sparse again") from None
    loaded.mirl_isa.restype = ctypes.c_char_p
    if loaded.mirl_isa() is None:
        raise BackendError(
            f"MIRL_CPU_ISA is {os.environ.get('MIRL_CPU_ISA')!r}, which this processor cannot run;"
            " expected avx512, avx2 or portable"
        )
    return loaded


def available() -> bool:
    """Whether the C++ kernels can run here."""
    try:
        library()
    except BackendError:
        return False
    return True


def isa() -> str:
    """The instruction set in use: avx512, avx2 or portable."""
    return library().mirl_isa().decode()


def padded(floats: int) -> int:
    """The kernels' ``padded`` (rows.h): how far apart they lay rows of so many floats."""
    stride = (floats + 15) // 16 * 16 + 16
    return stride if stride % 1024 else stride + 16


def image(x: Tensor) -> Image:
    """(B, C, H, W) float32 on the CPU whose rows are contiguous, as the kernels take it."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 4:
        raise BackendError(
            f"input is {x.dtype} {tuple(x.shape)} on {x.device}; expected float32 (B, C, H, W) on the CPU"
        )
    if x.stride(3) != 1 and x.shape[3] > 1:
        raise BackendError(f"input has strides {x.stride()}; expected contiguous rows (call .contiguous())")
    return Image(x.data_ptr(), *x.stride()[:3])


def empty(batch: int, channels: int, height: int, width: int) -> Tensor:
    """An uninitialised (B, C, H, W) image laid out as the kernels like it: by image rows, all channels of a
    row together, so that a strip of rows is one stretch of memory. Slices of its channels are images too."""
    return torch.empty(batch, height, channels, padded(width)).permute(0, 2, 1, 3)[..., :width]


def check(x: Tensor, channels: int, out: Tensor, shape: tuple[int, ...], scratch: Tensor | None = None,
          floats: int = 0) -> None:  # fmt: skip
    """BackendError unless x has the channels that an op reads, ``out`` the shape that it writes, and
    ``scratch`` the floats that it needs: the kernels themselves check nothing."""
    if x.shape[1] != channels or out.shape != shape:
        raise BackendError(
            f"input {tuple(x.shape)} and output {tuple(out.shape)}; expected {channels} channels in, {shape} out"
        )
    if floats and (scratch is None or scratch.dtype != torch.float32 or scratch.numel() < floats):
        given = "none" if scratch is None else f"{scratch.numel()} of {scratch.dtype}"
        raise BackendError(f"scratch is {given}; expected {floats} of torch.float32")


class Work(NamedTuple):
    """What an op must do: multiply-adds by surviving weights, and the bytes that it reads and writes at least,
    its images each way once and its weights."""

    macs: int
    bytes: int


class Packed(ABC):
    """The surviving weights of one op, in the form that its kernel reads."""

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        """How many floats of scratch memory a call on (B, C, H, W) takes."""
        return 0

    @abstractmethod
    def work(self, batch: int, height: int, width: int) -> Work:
        """What a call on (B, C, H, W) must do."""

    @abstractmethod
    def __call__(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> None:
        """``out`` = op(x), both float32 (B, C, H, W) on the CPU; ``scratch`` holds `scratch_floats` where these are
        any. BackendError for what the kernel does not take."""


def size(x: Tensor) -> Size:
    return Size(*x.shape)


@cache
def _function(name: str, size: int) -> Callable[[object], int]:
    if getattr(library(), f"mirl_{name}_bytes")() != size:
        raise BackendError(f"the C++ kernels are of another version (mirl_{name}); install mirl-sparse again")
    return getattr(library(), f"mirl_{name}")


def call(name: str, args: Structure) -> None:
    """Run ``mirl_<name>``."""
    if _function(name, ctypes.sizeof(args))(ctypes.byref(args)):
        raise MemoryError(f"mirl_{name} ran out of memory")
