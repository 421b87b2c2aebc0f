"""Remember modules as they are, tell whether they have changed since, and give them back as they were."""

from __future__ import annotations

import copy
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import is_

import numpy as np
import torch
from torch import Tensor, nn


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
        self._modules = [part for m in modules for part in m.modules()]
        self._types = [type(part) for part in self._modules]
        self._attributes = [vars(part) for part in self._modules]
        contents = [x for part in self._modules for x in (part._parameters, part._buffers, part._modules)]
        self._mappings = [*self._attributes, *contents]
        self._sizes = [len(mapping) for mapping in self._mappings]
        self._values = [value for mapping in self._mappings for value in mapping.values()]
        values = (value for mapping in contents for value in mapping.values())
        self.tensors = [value for value in values if isinstance(value, Tensor)]
        self._counted = [t for t in self.tensors if not t.is_inference()]
        self._samples = [sample for t in self.tensors for sample in _samples(t)]
        self._state = self._read_state()

    def __reduce__(self) -> tuple[type[Snapshot], tuple[()]]:
        return Snapshot, ()

    def is_current(self) -> bool:
        """Return whether the modules are as they were."""
        return (
            bool(self._modules)
            and list(map(type, self._modules)) == self._types
            and all(map(is_, map(vars, self._modules), self._attributes))
            and list(map(len, self._mappings)) == self._sizes
            and all(map(is_, chain.from_iterable(m.values() for m in self._mappings), self._values))
            and self._read_state() == self._state
        )

    def _read_state(self) -> tuple[list[int], list[int], list[float]]:
        """Return the tensors' addresses, their versions and the samples of them."""
        versions = [t._version for t in self._counted]
        return (
            list(map(Tensor.data_ptr, self.tensors)),
            versions,
            [values[at] for values, at in self._samples],
        )


def _samples(t: Tensor) -> Iterator[tuple[memoryview, tuple[int, ...]]]:
    """Yield a tensor's memory and the places of its first value that is not zero and of one in the middle."""
    if t.device.type != "cpu" or t.layout != torch.strided or t.dtype not in (torch.float32, torch.float64):
        return
    values = t.detach().numpy()
    nonzero = np.flatnonzero(values)
    for i in {*nonzero[:1].tolist(), *nonzero[len(nonzero) // 2 :][:1].tolist()}:
        yield values.data, tuple(map(int, np.unravel_index(i, values.shape)))


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
