"""Remember modules as they are, tell whether they have changed since, and give them back as they were."""

from __future__ import annotations

import copy
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class _Seen(NamedTuple):
    """Remember a parameter, a buffer or a module, by the place that it has."""

    owner: dict[str, Any]
    name: str
    value: Any
    version: tuple[int, ...]

    def is_unchanged(self) -> bool:
        value = self.owner.get(self.name)
        return value is self.value and _version(value) == self.version


class _Sample(NamedTuple):
    """Remember one value of a tensor, which shares its memory with an array."""

    array: np.ndarray[Any, Any]
    place: tuple[int, ...]
    value: float

    def is_unchanged(self) -> bool:
        return bool(self.array[self.place] == self.value)


class Snapshot:
    """Remember all that decides what modules compute: types, attributes, and the tensors and modules inside.

    Two values of each tensor are remembered as well: fused optimizers, ``.data`` and numpy write to a tensor
    unseen by its version. So a change of most values is seen, of a few perhaps not.

    Args:
        *modules: The modules. Of none, and of a copy, nothing is current.

    Attributes:
        tensors: Their parameters and buffers.
    """

    def __init__(self, *modules: nn.Module) -> None:
        parts = [part for m in modules for part in m.modules()]
        self._parts = [(part, type(part), dict(vars(part))) for part in parts]
        owners = [owner for x in parts for owner in (x._parameters, x._buffers, x._modules)]
        self._owners = [(owner, len(owner)) for owner in owners]
        self._seen = [_Seen(owner, name, v, _version(v)) for owner in owners for name, v in owner.items()]
        self.tensors = [x.value for x in self._seen if isinstance(x.value, Tensor)]
        self._samples = [sample for t in self.tensors for sample in _samples(t)]

    def __reduce__(self) -> tuple[type[Snapshot], tuple[()]]:
        return Snapshot, ()

    def is_current(self) -> bool:
        """Return whether the modules are as they were."""
        try:
            return (
                bool(self._parts)
                and all(type(m) is kind and vars(m) == attributes for m, kind, attributes in self._parts)
                and all(len(owner) == count for owner, count in self._owners)
                and all(x.is_unchanged() for x in self._seen)
                and all(sample.is_unchanged() for sample in self._samples)
            )
        except Exception:  # attributes that cannot be compared, such as two tensors, are two
            return False


def _version(value: Any) -> tuple[int, ...]:
    """Return what changes when somebody writes to a tensor."""
    if not isinstance(value, Tensor):
        return ()
    return value.data_ptr(), 0 if value.is_inference() else value._version


def _samples(t: Tensor) -> Iterator[_Sample]:
    """Yield the first value of a tensor that is not zero, and one from the middle of them."""
    if t.device.type != "cpu" or t.layout != torch.strided or t.dtype not in (torch.float32, torch.float64):
        return
    array = t.detach().numpy()
    nonzero = np.flatnonzero(array)
    for i in {*nonzero[:1].tolist(), *nonzero[len(nonzero) // 2 :][:1].tolist()}:
        place = tuple(int(k) for k in np.unravel_index(i, array.shape))
        yield _Sample(array, place, float(array[place]))


def checksum(m: nn.Module) -> int:
    """Return a checksum of what decides what a module computes: its weights, and plain attributes inside."""
    value = 0
    for part in m.modules():
        plain = {
            name: v
            for name, v in vars(part).items()
            if name != "training" and isinstance(v, (int, float, str, tuple, type(None)))
        }
        value = zlib.crc32(f"{type(part).__qualname__} {plain}".encode(), value)
    for t in (*m.parameters(), *m.buffers()):
        value = zlib.crc32(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, value)
    return value


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Give a network back as it was: the values of its buffers, and what its modules keep as attributes.

    Args:
        network: The network, which is called meanwhile.
    """
    parts = [vars(m) for m in network.modules() if not isinstance(m, torch.jit.ScriptModule)]
    attributes = [(part, dict(part)) for part in parts]
    collections = [
        (value, copy.copy(value))
        for part in parts
        for value in part.values()
        if isinstance(value, (dict, list, set, deque))
    ]
    buffers = [(b, b._version, b.clone()) for b in network.buffers() if not b.is_inference()]
    try:
        yield
    finally:
        for part, before in attributes:
            part.clear()
            part.update(before)
        for value, contents in collections:
            value.clear()
            value.extend(contents) if isinstance(value, (list, deque)) else value.update(contents)
        for buffer, version, values in buffers:
            if buffer._version != version:
                buffer.copy_(values)
