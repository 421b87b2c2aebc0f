"""Ask how much memory a device has left, and how much a call takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mirl_sparse.memory import available_memory


def available_on(device: torch.device) -> int | None:
    """Return how much memory of a device can be used now, in bytes, or None if that is not known.

    On a GPU, it includes what PyTorch has reserved and does not use.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return available_memory() if device.type == "cpu" else None


def peak_bytes(call: Callable[[], object]) -> int:
    """Return how much memory, in bytes, the tensors that a call makes hold at most at one time."""
    with _Meter() as meter:
        call()
    return meter.peak


class _Meter(TorchDispatchMode):
    """Add the memory of every new tensor up, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._held = 0
        self._storages: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **kwargs or {})
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and id(t.untyped_storage()) not in given | self._storages.keys():
                self._add(t.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        self._storages[key] = storage.nbytes()
        self._held += storage.nbytes()
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self._held -= self._storages.pop(key)
