"""Run a network on an example input, the same each time, and record how it calls its modules."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mirl_sparse.errors import UserError
from mirl_sparse.runtime.snapshot import unchanged
from mirl_sparse.sparsification.comparison import copied, tensors
from mirl_sparse.sparsification.target import CallShape


class Example(NamedTuple):
    """Hold the arguments of a network.

    Attributes:
        args: Positional arguments.
        named: Arguments by name.
    """

    args: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """Hold what an example input shows of a network.

    Attributes:
        calls: Input shapes of each module that was called, by the module's id.
        positional: How many positional arguments each module was called with, by the module's id; -1 where
            arguments came by name, or several of them were tensors.
        results: Copies of the tensors in the network's result.
        kind: Name of the result's type.
    """

    calls: Mapping[int, list[CallShape]]
    positional: Mapping[int, set[int]]
    results: list[Tensor]
    kind: str


@contextmanager
def seeded(device: torch.device) -> Iterator[None]:
    """Draw the same random numbers in each such block, and leave the generators as they were.

    Args:
        device: A device whose generator is seeded beside those of the CPU, of random and of numpy.
    """
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def record_calls(network: nn.Module, example: Example) -> Recording:
    """Run a network on an example input and record how it calls its modules.

    Args:
        network: The dense network.
        example: The network's arguments, which are copied.

    Raises:
        UserError: The network does not take the example input.
    """
    shapes: dict[int, Counter[tuple[int, ...]]] = {}
    positional: dict[int, set[int]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs = [x for x in (*args, *named.values()) if isinstance(x, Tensor)]
        if inputs:
            shapes.setdefault(id(module), Counter())[tuple(inputs[0].shape)] += 1
        positional.setdefault(id(module), set()).add(-1 if named or len(inputs) > 1 else len(args))

    hooks = [
        m.register_forward_pre_hook(note, with_kwargs=True)
        for m in network.modules()
        if not isinstance(m, torch.jit.ScriptModule)
    ]
    args, named = copied(example)
    try:
        with seeded(torch.device("cpu")), unchanged(network):
            result = network(*args, **named)
            results = [t.clone() for t in tensors(result)]  # which the network may write to again
    except Exception as error:
        raise UserError(
            f"the network fails on the example input ({type(error).__name__}: {one_line(error)}); give one"
            " that it takes: a tensor, a tuple of arguments, or a dict of arguments by name"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    calls = {key: [CallShape(*item) for item in counter.items()] for key, counter in shapes.items()}
    return Recording(calls, positional, results, type(result).__name__)


def one_line(error: Exception) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())[:200]
