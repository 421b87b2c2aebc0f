"""The C++ kernels: loading the library, and the structures of its C interface (``abi.h``)."""

from __future__ import annotations

import ctypes
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from ctypes import Structure, c_double, c_int64, c_void_p
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mirl_kernels.errors import BackendError

_LIBRARY = "libmirl_cpu.so"
_Count = TypeVar("_Count", int, Tensor)
CHUNK = 96  # columns whose panel fits the first-level cache
_PANEL = 64  # MIRL_PANEL of abi.h
_NEAR = 1 << 20  # floats (4 MB) that stay in a cache between two layers
DENSE = 0.55  # the density from which a product by rows takes longer than the whole matrix


class Image(Structure):
    _fields_ = [("data", c_void_p), ("batch", c_int64), ("channel", c_int64), ("row", c_int64)]


class Size(Structure):
    _fields_ = [
        ("batch", c_int64),
        ("channels", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("flat", c_int64),
    ]


class _Chunk(NamedTuple):
    first_row: int
    matrix: Tensor
    bias: Tensor | None


class Forms(Enum):
    """In which forms a matrix is packed that is more than half full, where it is faster whole; others are entries alone."""

    BOTH = "entries, and whole beside them"
    EITHER = "whole alone"
    ENTRIES = "entries alone"


def _assemble(
    chunks: list[_Chunk], rows: int, columns: int, taps: Tensor | None = None, forms: Forms = Forms.BOTH
) -> Tensor:
    """MirlMatrix of abi.h: int32 words."""
    words: list[Tensor] = []
    at = 5 + 7 * len(chunks)

    def add(part: Tensor | None) -> int:
        nonlocal at
        if part is None:
            return 0
        words.append(part.contiguous().view(torch.int32).flatten())
        at += words[-1].numel()
        return at - words[-1].numel()

    table, entries = [], 0
    for first_row, matrix, bias in chunks:
        row, column = matrix.nonzero(as_tuple=True)
        start = torch.zeros(len(matrix) + 1, dtype=torch.int32)
        start[1:] = torch.bincount(row, minlength=len(matrix)).cumsum(0)
        values = matrix[row, column].float().contiguous().view(torch.int32)
        entry = torch.stack([(column * (4 * _PANEL)).int(), values], 1)
        dense = None
        if forms is not Forms.ENTRIES and len(row) > DENSE * matrix.numel():
            whole = torch.nn.functional.pad(matrix.float(), (0, 0, 0, -len(matrix) % 4))
            dense = whole.view(-1, 4, matrix.shape[1]).transpose(1, 2)
        entries += len(row)
        keep = dense is None or forms is not Forms.EITHER
        parts = (
            start if keep else None,
            entry if keep else None,
            None if bias is None else bias.float(),
            dense,
        )
        table += [first_row, *matrix.shape, *map(add, parts)]
    header = [rows, columns, entries, len(chunks), add(taps)]
    return torch.cat([torch.tensor(header + table, dtype=torch.int32), *words])


@torch.no_grad()
def pack(matrix: Tensor, bias: Tensor | None = None, forms: Forms = Forms.BOTH) -> Tensor:
    """The nonzero entries of a (rows, columns) matrix, row by row, as one int32 tensor that the kernels read;
    ``bias`` (rows,) is added to each."""
    rows, columns = matrix.shape
    return _assemble([_Chunk(0, matrix, bias)], rows, columns, forms=forms)


@torch.no_grad()
def pack_taps(groups: Sequence[tuple[Tensor, Tensor]], bias: Tensor | None = None, chunk: int | None = CHUNK,
              forms: Forms = Forms.BOTH) -> Tensor:  # fmt: skip
    """The matrix of a convolution. Each group of output channels in turn has a (rows, columns) matrix and its columns'
    taps, (columns, 3) int32: channel, and distance in rows and columns. Columns of zeros are left out, the others cut
    into chunks of at most ``chunk``; with None nothing is left out or cut."""
    chunks, taps, row = [], [], 0
    for matrix, tap in groups:
        parts = [torch.arange(matrix.shape[1])]
        if chunk:
            used = (matrix != 0).any(0).nonzero()[:, 0]
            parts = list(used.split(chunk))
        for i, part in enumerate(parts):
            offset = None if bias is None or i else bias[row : row + len(matrix)]
            chunks.append(_Chunk(row, matrix[:, part], offset))
            taps.append(tap[part])
        row += len(matrix)
    return _assemble(chunks, row, sum(map(len, taps)), torch.cat(taps).int(), forms)


@torch.no_grad()
def pack_normalised(pointwise: Tensor, taps: Tensor, norm_weight: Tensor, norm_bias: Tensor | None,
                    bias: Tensor | None, tap_bias: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    """How MDTA and GDFN begin, `rows` of it: a layer norm's gain and bias, folded into the (rows, C) 1x1 layer behind
    it, and the (rows, 9) taps of a depthwise convolution."""
    offset = pointwise.new_zeros(len(pointwise)) if bias is None else bias
    if norm_bias is not None:
        offset = offset + pointwise @ norm_bias
    packed = pack(pointwise[rows] * norm_weight, offset[rows])
    return packed, pack(taps[rows], None if tap_bias is None else tap_bias[rows])


def kept(packed: Tensor) -> int:
    """How many entries of a packed matrix are not zero."""
    return int(packed[2])


def whole(packed: Tensor) -> bool:
    """Whether a packed matrix, of one chunk, is kept whole."""
    return bool(packed[11])


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


def turned(channels: _Count) -> _Count:
    """The kernels' ``turned`` (gram.h): how many columns a panel of so many channels has, transposed."""
    return -(-channels // 16) * 16


def address(packed: Tensor) -> int:
    """Where the kernels find a packed matrix; BackendError when it was moved away."""
    if packed.device.type != "cpu" or packed.dtype != torch.int32 or not packed.is_contiguous():
        raise BackendError(f"packed weights are {packed.dtype} on {packed.device}; expected int32 on the CPU")
    return packed.data_ptr()


def floats(values: Tensor) -> int:
    """Where the kernels find a vector or matrix that is not packed; BackendError when it was moved away or cast."""
    if values.device.type != "cpu" or values.dtype != torch.float32 or not values.is_contiguous():
        raise BackendError(f"weights are {values.dtype} on {values.device}; expected float32 on the CPU")
    return values.data_ptr()


class _Transpose(Structure):
    _fields_ = [("x", c_void_p), ("y", c_void_p), ("batch", c_int64), ("rows", c_int64), ("columns", c_int64),
                ("x_batch", c_int64), ("x_row", c_int64), ("threads", c_int64)]  # fmt: skip


def with_rows(x: Tensor) -> Tensor:
    """x, or a copy of it whose rows are contiguous."""
    if x.ndim == 4 and (x.stride(3) == 1 or x.shape[3] == 1):
        return x
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 4 or not x.numel() or x.stride(1) != 1:
        return x.contiguous()
    batch, channels, height, width = x.shape
    if height > 1 and x.stride(2) != width * x.stride(3):
        return x.contiguous()
    y = x.new_empty(x.shape)  # channels_last, which PyTorch takes long to copy
    Call(
        "transpose",
        _Transpose(x.data_ptr(), y.data_ptr(), batch, height * width, channels, x.stride(0), x.stride(3)),
        x,
        y,
    )()
    return y


def result(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """An uninitialised image for what an op makes of x."""
    if height < 1 or width < 1:
        raise BackendError(
            f"input {tuple(x.shape)} is smaller than the kernel; its result would be {height}x{width}"
        )
    return x.new_empty(x.shape[0], channels, height, width)


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
    image = torch.empty(batch, height, channels, padded(width), dtype=torch.float32)
    return image.permute(0, 2, 1, 3)[..., :width]


def check(x: Tensor, channels: int, out: Tensor, shape: tuple[int, ...], scratch: Tensor | None = None,
          floats: int = 0) -> None:  # fmt: skip
    """BackendError unless x has the channels that an op reads, ``out`` the shape that it writes, and
    ``scratch`` the floats that it needs: the kernels themselves check nothing."""
    if 0 in x.shape or 0 in out.shape:
        raise BackendError(f"input {tuple(x.shape)} and output {tuple(out.shape)}; expected a pixel or more")
    if x.shape[1] != channels or out.shape != shape:
        raise BackendError(
            f"input {tuple(x.shape)} and output {tuple(out.shape)}; expected {channels} channels in, {shape} out"
        )
    if floats and (scratch is None or scratch.dtype != torch.float32 or scratch.numel() < floats):
        given = "none" if scratch is None else f"{scratch.numel()} of {scratch.dtype}"
        raise BackendError(f"scratch is {given}; expected {floats} of torch.float32")


class Activation(Structure):
    """What happens to a result before it is stored; `activation` makes one."""

    _fields_ = [("gelu", c_int64), ("slope", c_double)]


def activation(name: str, slope: float = 0.0) -> Activation:
    """ "none", "relu", "leaky_relu" (x, or ``slope`` * x where that is more; 0 <= slope <= 1) or "gelu" (exact)."""
    if name == "leaky_relu" and not 0 <= slope <= 1:
        raise BackendError(f"slope is {slope}; expected 0 to 1")
    return Activation(name == "gelu", {"none": 1.0, "gelu": 1.0, "relu": 0.0, "leaky_relu": slope}[name])


class Work(NamedTuple):
    """What an op must do: multiply-adds by surviving weights, and the bytes that it reads and writes at least,
    its images each way once and its weights."""

    macs: int
    bytes: int


def header(packed: Tensor) -> tuple[int, int]:
    """Rows and columns of a packed matrix."""
    rows, columns = packed[:2].tolist()
    return rows, columns


def expect(packed: Tensor, rows: int, columns: int | None = None) -> None:
    """BackendError unless a packed matrix has so many rows, and columns where these are inputs: the kernels would write beyond an
    image."""
    found = header(packed)
    if found[0] != rows or columns not in (None, found[1]):
        wanted = f"{rows} rows" if columns is None else f"{rows} rows and {columns} columns"
        raise BackendError(f"packed weights have {found[0]} rows and {found[1]} columns; expected {wanted}")


class PackedModule(nn.Module, ABC):
    """The surviving weights of one op, in the form that its kernel reads, as a module: its buffers are packed matrices."""

    activation = "none"  # of what the op stores, for those that can (`activation`)
    slope = 0.0

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"this {type(self).__name__} stands for a layer, whose {name} it has no more; a network that reads it must be"
                " converted with an example input, which shows that: the layer then stays as it was",
                name=name,
                obj=self,
            ) from None

    @abstractmethod
    def _fits(self) -> bool:
        """Whether the buffers belong to this module, and to each other: the kernels would not notice."""

    def _expect_fit(self, **weights: Tensor) -> None:
        """ValueError unless the buffers, just packed from these weights, fit."""
        if not self._fits():
            shapes = ", ".join(f"{name} {tuple(w.shape)}" for name, w in weights.items())
            raise ValueError(f"weights do not belong together, or to a {type(self).__name__}: {shapes}")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
                              missing: list[str], unexpected: list[str], errors: list[str]) -> None:  # fmt: skip
        before = dict(self._buffers)
        for name, buffer in before.items():  # those of another mask have other lengths
            given = state_dict.get(prefix + name)
            if (
                isinstance(given, Tensor)
                and buffer is not None
                and given.dtype == buffer.dtype == torch.int32
            ):
                self._buffers[name] = torch.empty_like(given, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        try:
            fits = self._fits()
        except (IndexError, ValueError, RuntimeError):  # no packed matrix at all
            fits = False
        if not fits:
            self._buffers.update(before)
            errors.append(
                f"the packed weights of {prefix.removesuffix('.')} are those of a layer of another shape"
            )


class Packed(PackedModule):
    """An op from image to image."""

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        """How many floats of scratch memory a call on (B, C, H, W) takes."""
        return 0

    @abstractmethod
    def work(self, batch: int, height: int, width: int) -> Work:
        """What a call on (B, C, H, W) must do."""

    def quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """How often a call on (B, C, H, W) does what: the cost model gives each a price."""
        floats = self.work(batch, height, width).bytes // 4
        return self._quantities(batch, height, width) + call_quantities(floats)

    @abstractmethod
    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Those that are the op's own."""

    @abstractmethod
    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> Call:
        """What computes ``out`` = op(x) when it is called, both float32 (B, C, H, W) on the CPU; ``scratch`` holds
        `scratch_floats` where these are any. BackendError for what the kernel does not take."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """op(x), as an op of torch.library that can be compiled and exported; BackendError as from `bind`."""


def groups(rows: int, columns: int) -> tuple[int, int]:
    """How many vectors of pixels ``rows`` rows of an image make, and how many groups the kernels work on them in: short
    rows share one."""
    lanes = {"avx512": 16, "avx2": 8, "portable": 4}[isa()]
    wide = 4 if lanes == 16 else 8
    vectors = -(-columns // lanes)
    together = max(1, min(rows, _PANEL // (vectors * lanes)))
    return rows * vectors, -(-rows // together) * -(-together * vectors // wide)


def call_quantities(floats: int) -> Counter[str]:
    """The `Packed.quantities` of any call that reads and writes so much."""
    return Counter({"call": 1, "far float": floats if floats > _NEAR else 0})


def product_quantities(packed: Tensor, vectors: int, groups: int) -> Counter[str]:
    """The `Packed.quantities` of a packed matrix times so many vectors of pixels in so many groups."""
    chunks = packed[5 : 5 + 7 * int(packed[3])].view(-1, 7)
    found: Counter[str] = Counter()
    far = 0
    for _, rows, columns, start, _, _, dense in chunks.tolist():
        found["row"] += rows * vectors
        found["row of a group"] += rows * groups
        if dense:
            found["dense"] += rows * columns * vectors
        else:
            entries = int(packed[start + rows])
            found["entry"] += entries * vectors
            found["entry of a group"] += entries * groups
            far += entries * groups
    if far > _NEAR // 32 * groups:  # they come from afar for every group of pixels
        found["far entry"] += far
    return found


def size(x: Tensor, flat: bool = False) -> Size:
    """``flat``: the rows of all images of this size are short and follow each other (abi.h)."""
    return Size(*x.shape, flat)


@cache
def _function(name: str, size: int) -> Callable[[object], int]:
    if getattr(library(), f"mirl_{name}_bytes")() != size:
        raise BackendError(f"the C++ kernels are of another version (mirl_{name}); install mirl-sparse again")
    return getattr(library(), f"mirl_{name}")


class Call:
    """A kernel and its arguments, which name the memory of the tensors in ``keep``; calling it runs the kernel on
    PyTorch's threads."""

    def __init__(self, name: str, args: Structure, *keep: Tensor | None) -> None:
        self._function = _function(name, ctypes.sizeof(args))
        self._name, self._args, self._keep = name, args, keep

    def __call__(self) -> None:
        self._args.threads = torch.get_num_threads()
        if self._function(ctypes.byref(self._args)):
            raise MemoryError(f"mirl_{self._name} ran out of memory")
