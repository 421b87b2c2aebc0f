"""Describe how much work one program of a kernel does, and measure which choice is fastest on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from mirl_kernels.core.triton.context import bound

_T = TypeVar("_T")


class Tile(NamedTuple):
    """Describe how much work one program of a kernel does.

    Attributes:
        sizes: The kernel's constants that say how much, by name, such as ``{"BLOCK_P": 128}``.
        warps: The warps of a program.
        pipelined: Whether the program loads the factors of the next products while it multiplies. NVIDIA's
            GPUs can do this. AMD's compiler does it in registers, at twice the instructions, so it is never
            done there.
    """

    sizes: dict[str, int]
    warps: int
    pipelined: bool = True

    def options(self, amd: bool, dependent: bool = False) -> dict[str, int | bool]:
        """Return the options for Triton's compiler.

        Args:
            amd: Whether the GPU is one of AMD's.
            dependent: Whether the launch may begin while the one before it ends.
        """
        return {
            "num_warps": self.warps,
            "num_stages": 3 if self.pipelined and not amd else 1,
            "enable_fp_fusion": True,  # the default until Triton 3.10
            **({"launch_pdl": True} if dependent else {}),
        }


@dataclass
class Tuner:
    """Time every launch in each tile that spills no registers.

    Attributes:
        seconds: Returns how many seconds a call takes.
        until: When to stop, in seconds of `time.monotonic`.
        timings: The seconds of each tile, summed over all launches of a compiled kernel, by the kernel's key.
    """

    seconds: Callable[[Callable[[], Any]], float]
    until: float
    timings: dict[str, list[tuple[float, Tile]]] = field(default_factory=dict)

    def compare(self, key: str, tiles: Iterable[Tile], run: Callable[[Tile], None]) -> None:
        """Time one launch in each tile, if there is time left and a choice.

        Args:
            key: The key of the compiled kernel.
            tiles: The tiles to compare. They are only iterated over at the first launch of a key, while there
                is time left.
            run: Makes the launch in a tile.
        """
        if time.monotonic() > self.until:
            return
        before = self.timings.get(key) or [(0.0, tile) for tile in tiles]
        if len(before) < 2:
            return
        self.timings[key] = [(total + self.seconds(partial(run, tile)), tile) for total, tile in before]

    @property
    def fastest(self) -> dict[str, Tile]:
        """Return the fastest tile of each compiled kernel, by key; of equal ones the first."""
        return {key: min(timings, key=itemgetter(0))[1] for key, timings in self.timings.items()}

    def activate(self) -> AbstractContextManager[None]:
        """Time each launch inside the `with` block several times, and then make it."""
        return bound(_active, self)


_active: ContextVar[Tuner | None] = ContextVar("tuner", default=None)


def active_tuner() -> Tuner | None:
    """Return the tuner whose `with` block this is, or None."""
    return _active.get()


def cheapest(choices: Iterable[_T], cost: Callable[[_T], int]) -> _T:
    """Return the first choice that costs nothing, or else the first one of least cost.

    >>> cheapest([4, 3, 0, 2], abs)
    0

    Args:
        choices: One choice or more. Those after the first free one are not looked at.
        cost: Returns the cost of a choice, at least 0.
    """
    costs = []
    for choice in choices:
        costs.append((cost(choice), choice))
        if not costs[-1][0]:
            break
    return min(costs, key=itemgetter(0))[1]
