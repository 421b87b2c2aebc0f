"""Make random sparse weights: what tests, benchmarks and price samples run ops on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """Hold what an op's definition takes after x.

    Attributes:
        weights: The positional arguments.
        options: The keyword arguments.
    """

    weights: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)


def sparse_weight(density: float, *shape: int, generator: torch.Generator | None = None) -> Tensor:
    """Return a random weight that keeps the size of what goes through it.

    Args:
        density: The share of values that are not zero, 0 to 1.
        *shape: (O, C, ...).
        generator: The source of random numbers; None for PyTorch's default.
    """
    values = torch.randn(shape, generator=generator) / max(1.0, shape[1] * density) ** 0.5
    return values * (torch.rand(shape, generator=generator) < density)
