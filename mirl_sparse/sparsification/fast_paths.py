"""Turn off the fast paths of PyTorch's transformer encoders, which pass by the layers inside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mirl_sparse.sparsification.forward import forwards


@contextmanager
def without_fast_paths(network: nn.Module) -> Iterator[None]:
    """Turn the fast paths of a network off; afterwards, on again where no module inside has a sparse form.

    Args:
        network: The network, in which modules are swapped meanwhile.
    """
    before = []
    for kind, name, off in (
        (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
        (nn.TransformerEncoder, "use_nested_tensor", False),
    ):
        for m in network.modules():
            if isinstance(m, kind) and not isinstance(m, torch.jit.ScriptModule):
                before.append((m, name, getattr(m, name)))
                setattr(m, name, off)
    yield
    for m, name, value in before:
        if next(forwards(m), None) is None:
            setattr(m, name, value)
