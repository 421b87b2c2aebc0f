"""Define the op ``mirl::restore``, the whole restorer in graphs of torch.compile and torch.export.

A graph holds weights and constants, but no engine. So the op keeps the last engines, and finds them by the
weights that they were packed from.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.backends import BACKENDS, choose_backend, choose_precision
from mirl_sparse.runtime.engine import Engine, weights_state
from mirl_sparse.runtime.execution import check_image, restore_image

_MAX_ENGINES = 2


class _Key(NamedTuple):
    config: str
    backend: str
    precision: str
    weights: tuple[tuple[int, int], ...]


class _EngineCache:
    """Keep the last engines, each with its network: it holds the weights, so their addresses stay unique."""

    def __init__(self) -> None:
        self._engines: OrderedDict[_Key, tuple[PromptIR, Engine]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, weights: Sequence[Tensor], config: str, backend: str, precision: str) -> Engine:
        """Return the engine for these weights; make one if there is none."""
        key = _Key(config, backend, precision, tuple(weights_state(weights)))
        with self._lock:
            if key in self._engines:
                self._engines.move_to_end(key)
            else:
                network = _network_of(weights, config)
                name = choose_backend(backend)
                engine = BACKENDS[name].make_engine(network, choose_precision(name, precision), None)
                self._engines[key] = network, engine
                while len(self._engines) > _MAX_ENGINES:
                    self._engines.popitem(last=False)
            return self._engines[key][1]

    def forget(self, weights: Sequence[Tensor]) -> None:
        """Remove all engines that were packed from these weights."""
        state = tuple(weights_state(weights))
        with self._lock:
            for key in [key for key in self._engines if key.weights == state]:
                del self._engines[key]


_engines = _EngineCache()


def _network_of(weights: Sequence[Tensor], config: str) -> PromptIR:
    """Return a network of that config (JSON) that shares these weights, its parameters in their order."""
    with torch.device("meta"):
        network = PromptIR(PromptIRConfig.from_dict(json.loads(config)))
    names = [name for name, _ in network.named_parameters()]
    network.load_state_dict(dict(zip(names, (w.detach() for w in weights), strict=True)), assign=True)
    return network.eval().requires_grad_(False)


def forget_weights(weights: Sequence[Tensor]) -> None:
    """Pack these weights anew when a compiled or exported model runs next."""
    _engines.forget(weights)


# The op records CUDA graphs of its own: newer versions of PyTorch are told not to put it into theirs.
_TAGS: dict[str, Any] = (
    {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
)


@torch.library.custom_op("mirl::restore", mutates_args=(), **_TAGS)
def restore_op(
    image: Tensor,
    weights: Sequence[Tensor],
    config: str,
    backend: str,
    max_memory: int,
    precision: str = "float32",
) -> Tensor:
    """Restore an image like `SparseRestorer.forward`, without a tuning, which no graph could hold.

    Args:
        image: (B, 3, H, W) float32.
        weights: The network's parameters in their order.
        config: The network's config as JSON.
        backend: A backend's name.
        max_memory: Limit of the memory in bytes; 0 stands for the default.
        precision: Precision of the activations.

    Returns:
        A new tensor of the image's shape.
    """
    check_image(image)
    engine = _engines.get(weights, config, backend, precision)
    return restore_image(engine, image, max_memory or None).contiguous()


@restore_op.register_fake
def _(
    image: Tensor,
    weights: Sequence[Tensor],
    config: str,
    backend: str,
    max_memory: int,
    precision: str = "float32",
) -> Tensor:
    return image.new_empty(image.shape)
