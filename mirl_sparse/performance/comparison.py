"""Compare sparse contenders on the CPU with dense ones, each dense configuration at its best."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mirl_sparse.performance.environment import Environment, environment
from mirl_sparse.performance.peers import DENSE, STOCK, Kind, quiet
from mirl_sparse.performance.timing import Turns, TurnsResult
from mirl_sparse.runtime.allocator import Allocator

# Largest differences from the expected result, relative to its largest value where that is above 1. Dense
# networks are given more: their float32 sums over all pixels of a large image lose digits that the sparse
# kernels, which sum in float64, keep; bfloat16 has three digits.
TOLERANCE, DENSE_TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 1e-2, 1e-1
_PAUSE = 0.05  # seconds between turns: the threads of the one before still wait for work, and would disturb
_TRIAL = 3  # rounds that every dense contender is in
# A dense contender that takes longer in these rounds than so many times the strongest one's time is dropped.
_FAR = 1.5


class Candidate(NamedTuple):
    """Hold a sparse way to run a network.

    Attributes:
        module: The way: takes an image (B, C, H, W) and restores it.
        expected: Result of the network that it stands for.
        tolerance: Largest difference that is right, relative to the largest result where that is above 1.
    """

    module: Callable[[Tensor], Tensor]
    expected: Tensor
    tolerance: float = TOLERANCE


@dataclass(frozen=True)
class ComparisonResult(TurnsResult):
    """Hold the result of a comparison on the CPU.

    Attributes:
        shape: Shape of the image.
        environment: Machine and software.
        allocator: "tuned", or "default" where it cannot be tuned.
    """

    shape: tuple[int, ...]
    environment: Environment
    allocator: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        conditions = {"shape": list(self.shape), **self.environment.to_dict(), "allocator": self.allocator}
        return conditions | super().to_dict()


class Comparison(Turns):
    """Compare sparse contenders with dense ones on the CPU, in turns.

    The allocator stays tuned for as long as the process lives.

    Attributes:
        shape: Shape of the image.
        dense: Names of the dense contenders that are timed.
        sparse: Names of the sparse contenders that are timed.

    Args:
        network: The dense network, zeros included.
        expected: The right result.
        sparse: Sparse contenders, by name.
        image: (B, C, H, W) float32.
        dense: Names of `peers.DENSE`, the first of them the default.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: nn.Module,
        expected: Tensor,
        sparse: Mapping[str, Candidate],
        image: Tensor,
        dense: Collection[str] = tuple(DENSE),
    ) -> None:
        super().__init__()
        self.shape = tuple(image.shape)
        self._allocator = Allocator()
        self._tuned = self._allocator.tune()
        for name in dense:
            if name == STOCK:
                self._admit_stock(network, expected, image)
            else:
                self._admit_dense(name, network, expected, image)
        for name, candidate in sparse.items():
            self.admit(
                name, partial(partial, candidate.module, image), candidate.expected, candidate.tolerance
            )
        self.dense = [name for name in self.times if name in DENSE]
        self.sparse = [name for name in self.times if name not in DENSE]

    def _admit_stock(self, network: nn.Module, expected: Tensor, image: Tensor) -> None:
        """Admit PyTorch by default, whose allocator is not tuned."""
        if not self._tuned:
            self.left_out[STOCK] = (
                "the allocator cannot be tuned here: the other dense runs have it as it comes"
            )
            return
        self._allocator.untune()
        self._admit_dense(STOCK, network, expected, image)
        self._allocator.tune()

    def _admit_dense(self, name: str, network: nn.Module, expected: Tensor, image: Tensor) -> None:
        peer = DENSE[name]
        if reason := peer.unavailable():
            self.left_out[name] = reason
            return
        tolerance = BFLOAT16_TOLERANCE if peer.bfloat16 else DENSE_TOLERANCE
        try:
            with quiet():
                self.admit(name, partial(peer, network, image), expected, tolerance)
        except (
            Exception
        ) as error:  # engines raise anything where there is no compiler or an operator is unknown
            if peer.kind is Kind.EAGER:
                raise
            self.left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]

    def entered(self) -> list[str]:
        """Return the contenders of the next round, in the order of their turns.

        The strongest dense contender is right before the first sparse one. After three rounds only those
        dense contenders stay that may be the strongest, and the default.
        """
        default, *others = self.dense
        first_sparse, other_sparse = self.sparse[:1], self.sparse[1:]
        if len(self.times[default]) < _TRIAL:
            return [*other_sparse, *self.dense, *first_sparse]
        trial = {name: float(np.median(self.times[name][:_TRIAL])) for name in self.dense}
        near = [name for name in others if trial[name] <= _FAR * min(trial.values())]
        return [*other_sparse, default, *sorted(near, key=lambda name: -trial[name]), *first_sparse]

    @torch.no_grad()
    def run(self, name: str) -> int:
        """Call a contender once, or several times if it is fast.

        Returns:
            How many times it was called.
        """
        contender = self._contenders[name]
        for _ in range(contender.repeats):
            contender.call()
        return contender.repeats

    def ready(self, name: str) -> None:
        """Pause, set the contender's allocator, and wake threads and caches up."""
        time.sleep(_PAUSE)
        if name == STOCK:
            self._allocator.untune()
        super().ready(name)

    def turn(self, name: str) -> None:
        """Time one contender."""
        super().turn(name)
        if name == STOCK:
            self._allocator.tune()
            self.run(name)  # touches the memory that the others find

    def result(self) -> ComparisonResult:
        """Return the rows of all contenders, and what they were measured on."""
        allocator = "tuned" if self._tuned else "default"
        return ComparisonResult(
            **vars(self.compared(self.dense)),
            shape=self.shape,
            environment=environment(),
            allocator=allocator,
        )
