"""Write a program as the C++ runtime reads it (``core/cpu/src/program.h``)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mirl_kernels.ops.block import PackedBlock
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.prompt import PackedPrompt
from mirl_sparse.runtime.program import Buffer, Slice, Step

MAGIC, VERSION = b"MIRLPROG", 1
_HEADER = struct.Struct("<8siIIiii7i")  # magic, version, words, checksum, multiple, buffers, steps, reserved
_CHECKED_FROM = 20  # the checksum is of the bytes from here on
_STEP_WORDS = 32
_ALIGNMENT = 16  # words: a cache line


class _Place(NamedTuple):
    """Remember where a module's buffer went: it becomes a view of the program there."""

    module: nn.Module
    name: str
    start: int


class _Writer:
    """Collect the words behind the tables."""

    def __init__(self, begin: int) -> None:
        self.places: list[_Place] = []
        self.parts: list[Tensor] = []
        self.end = begin

    def add(self, module: nn.Module, name: str) -> int:
        """Append a buffer of a module; return its position."""
        words = getattr(module, name).contiguous().view(torch.int32).flatten()
        gap = -self.end % _ALIGNMENT
        start = self.end + gap
        self.parts += [torch.zeros(gap, dtype=torch.int32), words]
        self.end = start + len(words)
        self.places.append(_Place(module, name, start))
        return start

    def add_all(self, module: nn.Module, *names: str) -> list[int]:
        return [self.add(module, name) for name in names]


def _parameters(op: nn.Module, writer: _Writer) -> tuple[int, list[int]]:
    """Return the number of an op (``ProgramOp``), and its words."""
    if isinstance(op, PackedConv):
        (stride, _) = op.window.stride
        return 0, [writer.add(op, "packed"), stride, op.shuffle]
    if isinstance(op, PackedPointwise):
        return 1, [writer.add(op, "packed")]
    if isinstance(op, PackedPrompt):
        _, count, _, side, _ = op.prompt_param.shape
        tensors = writer.add_all(op, "linear_weight", "linear_bias", "prompt_param", "conv3x3")
        return 2, [*tensors, count, side]
    assert isinstance(op, PackedBlock)
    mdta, gdfn = op.mdta, op.gdfn
    return 3, [
        *writer.add_all(mdta, "qkv", "dwconv", "project_out", "temperature"),
        *writer.add_all(mdta, "q_index", "k_index", "v_index"),
        *map(len, mdta.live),
        mdta.heads,
        mdta.centred,
        mdta.in_bfloat16,
        *writer.add_all(gdfn, "project_in", "dwconv", "project_out"),
        gdfn.centred,
    ]


def assemble(steps: Sequence[Step], multiple: int) -> Tensor:
    """Write the steps of a program whose ops are packed for the C++ kernels.

    The ops' buffers become views of the result, so that weights are in memory once.

    Args:
        steps: The steps.
        multiple: Number that the sides of images are multiples of.

    Returns:
        The words of the file, int32, at a multiple of 64 bytes.
    """
    slices = [part for step in steps for part in (step.x, step.y) if part]
    index: dict[Buffer, int] = {}
    for part in slices:
        index.setdefault(part.buffer, len(index))

    def words(part: Slice | None) -> list[int]:
        return [index[part.buffer], part.first, part.last] if part else [-1, 0, 3]

    table = _HEADER.size // 4 + 2 * len(index)
    writer = _Writer(table + _STEP_WORDS * len(steps))
    rows = []
    for step in steps:
        number, parameters = _parameters(step.op, writer)
        row = [number, *words(step.x), *words(step.y), *parameters]
        rows.append(row + [0] * (_STEP_WORDS - len(row)))
    buffers = [(buffer.channels, buffer.level) for buffer in index]
    tables = torch.tensor([*chain(*buffers), *chain(*rows)], dtype=torch.int32)
    header = torch.zeros(_HEADER.size // 4, dtype=torch.int32)
    program = torch.cat([header, tables, *writer.parts])
    data = program.numpy().view(np.uint8)
    counts = len(index), len(steps)

    def write_header(checksum: int) -> None:
        fields = VERSION, len(program), checksum, multiple, *counts, *[0] * 7
        data[: _HEADER.size] = np.frombuffer(_HEADER.pack(MAGIC, *fields), np.uint8)

    write_header(0)
    write_header(zlib.crc32(data[_CHECKED_FROM:].data))
    for place in writer.places:
        old = getattr(place.module, place.name)
        view = program[place.start :][: old.numel()].view(old.dtype).view(old.shape)
        setattr(place.module, place.name, view)
    return program
