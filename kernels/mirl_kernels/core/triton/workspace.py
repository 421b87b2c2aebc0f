"""Keep what the ops share from one launch to the next on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mirl_kernels.core.triton.tuner import Tile


@dataclass
class Workspace:
    """Hold the figures of a GPU and the tensors that the ops need again at the next image of the same size.

    Attributes:
        cached: Bytes of hidden channels that the GPU's second-level cache can be trusted to keep from one
            launch to the next.
        processors: The number of processors of the GPU.
        tiles: The fastest tile of each compiled kernel, as `Tuner.fastest` returns them.
        dependent: Whether a launch may begin while the one before it ends (module `dependent`).
        tensors: The tensors that the ops reuse, by key.
    """

    cached: int = 8 << 20
    processors: int = 108
    tiles: Mapping[str, Tile] = field(default_factory=dict)
    dependent: bool = False
    tensors: dict[Any, Tensor] = field(default_factory=dict)

    def waves(self, programs: int) -> int:
        """Return how many of so many programs the busiest processor runs.

        >>> Workspace(processors=100).waves(250)
        3
        """
        return -(-programs // self.processors)

    def tensor(
        self, key: Any, make: Callable[[], Tensor], suffices: Callable[[Tensor], bool] = lambda tensor: True
    ) -> Tensor:
        """Return the tensor of a key, and make it first if there is none or if it does not suffice.

        Args:
            key: Any hashable object that names the tensor.
            make: Makes the tensor.
            suffices: Returns whether an existing tensor can be used.
        """
        if key in self.tensors and not suffices(self.tensors[key]):
            del self.tensors[key]  # frees its memory before the next one is made
        if key not in self.tensors:
            self.tensors[key] = make()
        return self.tensors[key]
