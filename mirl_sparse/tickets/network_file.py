"""Read and write tickets of other architectures than PromptIR: weights and masks in one safetensors file.

The architecture is stored by its name alone. spandrel builds the network from the names and shapes of the
weights, so nothing in the file is run.

A tensor with many zeros, NAME, is stored as ``NAME.mask`` and ``NAME.values``, as in every ticket, and
``NAME.shape`` (int64); every other tensor as it is. The metadata holds ``format``, ``architecture`` (JSON:
``source`` "spandrel", ``name``, ``versions``) and ``statistics`` (JSON).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from mirl_sparse.architectures.image_network import NetworkWeights, detect, versions
from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.tickets.file import NETWORK_FORMAT, read_metadata
from mirl_sparse.tickets.packing import MASK, SHAPE, VALUES, TicketError, pack_weight, unpack_weight

_SOURCE = "spandrel"


def pack_network(weights: NetworkWeights, statistics: Mapping[str, Any]) -> bytes:
    """Return the content of a ticket file.

    Args:
        weights: The network's weights; their zeros are the mask.
        statistics: Figures that the ticket holds about itself, as JSON holds them.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in weights.state.items():
        if _is_smaller_packed(value):
            tensors |= pack_weight(name, value) | {name + SHAPE: torch.tensor(value.shape)}
        else:
            tensors[name] = value.clone(memory_format=torch.contiguous_format)  # none may share memory
    architecture = {"source": _SOURCE, "name": weights.architecture, "versions": versions()}
    metadata = {"architecture": json.dumps(architecture), "statistics": json.dumps(statistics)}
    return save(tensors, {"format": NETWORK_FORMAT} | metadata)


def _is_smaller_packed(value: Tensor) -> bool:
    """Return whether a float32 tensor takes less room as one bit for each element and what is not zero."""
    is_matrix = value.dtype == torch.float32 and value.ndim > 1
    return is_matrix and value.numel() / 8 + 4 * int(value.count_nonzero()) < 4 * value.numel()


def unpack_network(data: bytes) -> NetworkWeights:
    """Return the weights in a ticket's content.

    The data may come from anywhere: no memory is allocated that is not in proportion to it.

    Args:
        data: Content of a ticket, as `pack_network` returns it.

    Raises:
        TicketError: The data are no such ticket, are damaged, or spandrel takes them for another
            architecture than the ticket names.
        ArchitectureError: spandrel is not installed.
    """
    try:
        metadata = read_metadata(data)
        architecture = json.loads(metadata["architecture"])
        name, made_by = str(architecture["name"]), str(architecture["versions"])
        if architecture["source"] != _SOURCE:
            raise TicketError(f"its architecture is one of {architecture['source']!r}; expected {_SOURCE!r}")
        state = unpack_tensors(load(data))
    except UserError:
        raise
    except (KeyError, SafetensorError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TicketError(
            f"the ticket is damaged ({reason}); expected a file that mirl-sparse convert wrote"
        ) from None
    if (recognised := detect(state)) != name:
        raise TicketError(
            f"is a ticket of {name}, made with {made_by}; {versions()} here takes it for"
            f" {recognised or 'no network that it knows'}: install the versions that made it"
        )
    return NetworkWeights(name, state, f"ticket of {name}")


def unpack_tensors(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a ticket by their published names, zeros included.

    Args:
        stored: The tensors of the file.

    Raises:
        TicketError: A mask, its values and its shape do not belong together.
    """
    state: dict[str, Tensor] = {}
    for key, value in stored.items():
        name = key.removesuffix(SHAPE)
        is_packed = all(name + part in stored for part in (MASK, VALUES, SHAPE))
        if is_packed and key == name + SHAPE:
            state[name] = _unpacked(name, stored)
        elif not _belongs_to_packed(key, stored):
            state[key] = value
    return state


def _belongs_to_packed(key: str, stored: Mapping[str, Tensor]) -> bool:
    name, _, part = key.rpartition(".")
    parts = (MASK, VALUES, SHAPE)
    return f".{part}" in parts and all(name + other in stored for other in parts)


def _unpacked(name: str, stored: Mapping[str, Tensor]) -> Tensor:
    shape = stored[name + SHAPE]
    if shape.dtype != torch.int64 or shape.ndim != 1 or (shape < 0).any():
        raise TicketError(f"its shape of {name} is damaged; convert the checkpoint again")
    if math.prod(shape.tolist()) > 8 * stored[name + MASK].numel():
        raise TicketError(f"its mask of {name} is shorter than its shape says; convert the checkpoint again")
    return unpack_weight(name, torch.Size(shape.tolist()), stored[name + MASK], stored[name + VALUES])


def write_network_ticket(path: Path, data: bytes) -> None:
    """Write the content of a ticket to a file, whole or not at all.

    Raises:
        TicketError: The file cannot be written.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise TicketError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_network_ticket(path: Path) -> NetworkWeights:
    """Return the weights of a ticket file.

    Raises:
        TicketError: The file cannot be read, or holds no such ticket.
    """
    try:
        return unpack_network(path.read_bytes())
    except OSError as error:
        raise TicketError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UserError as error:
        raise TicketError(f"{path}: {error}") from None
