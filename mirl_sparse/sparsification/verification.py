"""Compare a sparsified network with the dense one on the example input."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from mirl_sparse.errors import UserError
from mirl_sparse.runtime.snapshot import unchanged
from mirl_sparse.sparsification.comparison import copied, difference
from mirl_sparse.sparsification.forward import SparseForward, dense_forwards
from mirl_sparse.sparsification.recording import Example, Recording, one_line, seeded
from mirl_sparse.sparsification.target import SparsificationTarget


class Verification:
    """Compare a sparsified network with the dense one on an example input.

    Args:
        target: The target that the network is on.
        network: The sparsified network.
        example: The network's arguments.
        recording: What the dense network gave for them.
        tolerance: Largest difference, relative to the largest result, or to 1 where that is less.
    """

    def __init__(
        self,
        target: SparsificationTarget,
        network: nn.Module,
        example: Example,
        recording: Recording,
        tolerance: float,
    ) -> None:
        self._target, self._network, self._example = target, network, example
        self._recording, self._tolerance = recording, tolerance
        self._failure: Exception | None = None

    def run(self, forwards: dict[str, SparseForward], revert: Callable[[str, float], None]) -> str:
        """Compare the results; where they differ, or cannot be compared, compare layer by layer.

        Args:
            forwards: The sparse modules, by name.
            revert: Makes a module dense again, given its name and by how much its sparse form differs.

        Returns:
            How the results were compared, for the report.

        Raises:
            UserError: The network differs, although each of its layers gives the same.
        """
        expected = self._recording.results
        if not expected:
            why = f"the network gives {self._recording.kind}, without tensors to compare"
            return self._layers(forwards, revert, why)
        if (by := self._difference(expected)) <= self._tolerance:
            return _whole(by)
        largest = self._revert_layers(forwards, revert)
        if (by := self._difference(expected)) <= self._tolerance:
            return _whole(by)
        with dense_forwards(self._network):
            first, second = self._result(), self._result()
        if (by := self._difference(first)) <= self._tolerance:
            return _whole(by)
        if difference(first, second) > self._tolerance:
            return self._layers(forwards, revert, "the network gives another result at each call")
        if self._failure is not None:
            raise UserError(
                f"the sparsified network fails on the example input ({type(self._failure).__name__}:"
                f" {one_line(self._failure)}), the dense one does not; name modules in keep_dense"
            ) from self._failure
        raise UserError(
            f"the sparsified network differs from the dense one by {by:.1e} of its largest value for the"
            f" example input; expected at most {self._tolerance:.0e}. Each layer differs by at most"
            f" {largest:.0e}, so the network makes rounding large{self._target.doubt}: give a tolerance of"
            f" {2 * by:.0e} if that is small enough for you, or name modules in keep_dense"
        )

    def _result(self) -> Any:
        args, named = copied(self._example)
        with seeded(self._target.device), unchanged(self._network):
            return self._target.run(self._network, *args, **named)

    def _difference(self, expected: Any) -> float:
        """Return by how much the results differ; infinite where the sparsified network fails."""
        try:
            result = self._result()
        except Exception as error:  # of the network's own code
            self._failure = error
            return math.inf
        return difference(expected, result)

    def _layers(
        self, forwards: dict[str, SparseForward], revert: Callable[[str, float], None], why: str
    ) -> str:
        largest = self._revert_layers(forwards, revert)
        return f"each module on what it gets from the example input, largest difference {largest:.0e}; {why}"

    def _revert_layers(
        self, forwards: dict[str, SparseForward], revert: Callable[[str, float], None]
    ) -> float:
        """Make the modules dense that differ on what they get, and return by how much the others differ."""
        differences = dict.fromkeys(forwards, 0.0)

        def compare(name: str, module: nn.Module, args: Any, named: Any, result: Any) -> None:
            dense = forwards[name].dense(*args, **named)
            differences[name] = max(differences[name], difference(dense, result))

        hooks = [
            forward.module.register_forward_hook(partial(compare, name), with_kwargs=True)
            for name, forward in forwards.items()
        ]
        try:
            self._difference(None)
        finally:
            for hook in hooks:
                hook.remove()
        for name, by in differences.items():
            if by > self._tolerance:
                revert(name, by)
        return max((by for by in differences.values() if by <= self._tolerance), default=0.0)


def _whole(by: float) -> str:
    return f"with the dense network on the example input, largest difference {by:.0e}"
