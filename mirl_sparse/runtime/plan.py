"""Plan memory: where the buffers of a program go in one arena, for one input size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mirl_kernels.core import cpu
from mirl_sparse.runtime.program import Buffer, Step

_ALIGNMENT = 64  # floats (256 bytes): every buffer begins at a multiple
_FLOAT_BYTES = 4


class Lifetime(NamedTuple):
    """Describe a stretch of memory: the first and the last step that use it, and its size in floats."""

    first: int
    last: int
    floats: int

    def overlaps(self, other: Lifetime) -> bool:
        """Return whether both stretches are in use during the same step."""
        return self.first <= other.last and other.first <= self.last


def place(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Place stretches of memory in one arena, such that two that overlap in time do not overlap in space.

    The largest is placed first; each goes to the lowest address that is free as long as it is in use.

    Args:
        lifetimes: At least one.

    Returns:
        The start of each stretch, and the length of the arena, in floats.
    """
    placed: list[int] = []
    starts = [0] * len(lifetimes)
    for i in sorted(range(len(lifetimes)), key=lambda i: -lifetimes[i].floats):
        for j in sorted(placed, key=lambda j: starts[j]):
            if lifetimes[i].overlaps(lifetimes[j]):
                if starts[j] - starts[i] >= lifetimes[i].floats:
                    break
                starts[i] = max(starts[i], starts[j] + lifetimes[j].floats)
        placed.append(i)
    return starts, max(start + life.floats for start, life in zip(starts, lifetimes, strict=True))


@dataclass(frozen=True)
class InputSize:
    """Describe the size of an input (batch, 3, height, width); its sides are as the network takes them."""

    batch: int
    height: int
    width: int

    def at(self, level: int) -> tuple[int, int, int]:
        """Return (batch, height, width) after ``level`` halvings."""
        return self.batch, self.height >> level, self.width >> level

    def floats(self, buffer: Buffer) -> int:
        """Return how many floats a buffer takes, with its rows padded as the kernels want them."""
        batch, height, width = self.at(buffer.level)
        return batch * height * buffer.channels * cpu.padded(width)


@dataclass(frozen=True)
class MemoryPlan:
    """Assign all buffers of a program their places in one arena, for one input size.

    Buffers share memory: the memory of a buffer is used again after its last reader is done.

    Attributes:
        size: The input size.
        buffers: Start of each buffer, in floats.
        scratch: Start and length of scratch memory, in floats, by the index of the step that needs it.
        floats: The length of the arena.
    """

    size: InputSize
    buffers: Mapping[Buffer, int]
    scratch: Mapping[int, tuple[int, int]]
    floats: int

    @property
    def bytes(self) -> int:
        """Return the size of the arena in bytes."""
        return _FLOAT_BYTES * self.floats


def level_of(step: Step) -> int:
    """Return how often the input of a step is halved against the image."""
    return step.x.buffer.level if step.x else 0


def _users(steps: Sequence[Step]) -> dict[Buffer, list[int]]:
    """Return the indices of the steps that read or write each buffer, in order."""
    users: dict[Buffer, list[int]] = {}
    for i, step in enumerate(steps):
        for part in (step.x, step.y):
            if part:
                users.setdefault(part.buffer, []).append(i)
    return users


def _aligned(floats: int) -> int:
    return -(-floats // _ALIGNMENT) * _ALIGNMENT


def plan_memory(steps: Sequence[Step], size: InputSize) -> MemoryPlan:
    """Plan the memory of a program for one input size; allocate nothing."""
    lifetimes: dict[Hashable, Lifetime] = {}
    users = _users(steps)
    for buffer, indices in users.items():
        lifetimes[buffer] = Lifetime(indices[0], indices[-1], _aligned(size.floats(buffer)))
    scratch: dict[int, int] = {}
    for i, step in enumerate(steps):
        if floats := step.op.scratch_floats(*size.at(level_of(step))):
            scratch[i] = floats
            lifetimes[i] = Lifetime(i, i, _aligned(floats))
    starts, length = place(list(lifetimes.values()))
    start = dict(zip(lifetimes, starts, strict=True))
    return MemoryPlan(
        size,
        {buffer: start[buffer] for buffer in users},
        {i: (start[i], floats) for i, floats in scratch.items()},
        length,
    )
