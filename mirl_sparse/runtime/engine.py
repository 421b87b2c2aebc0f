"""Define what the engine of every backend offers: the `Engine` protocol."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor


class Engine(Protocol):
    """Run one network on one backend.

    Images have shape (B, 3, H, W), float32. Several threads may call one engine.

    Attributes:
        multiple: Number that H and W are multiples of.
    """

    multiple: int

    def __call__(self, image: Tensor) -> Tensor:
        """Restore an image; return a new tensor of its shape."""

    def has_plan(self, image: Tensor) -> bool:
        """Return whether the engine already holds all the memory that an image of this shape needs."""

    def required_bytes(self, batch: int, height: int, width: int) -> int:
        """Return how much memory, in bytes, an image of shape (batch, 3, height, width) needs."""

    @property
    def cached_bytes(self) -> int:
        """Return how much memory, in bytes, the engine holds for the next images."""

    def release(self) -> None:
        """Free the memory that the engine holds for the next images."""


def weights_state(weights: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Return the address and the version of each weight: they differ after a weight has changed.

    PyTorch does not count changes made through ``.data``. Tensors of inference mode have no version and are
    not expected to change; their version is given as -1.
    """
    return [(w.data_ptr(), -1 if w.is_inference() else w._version) for w in weights]
