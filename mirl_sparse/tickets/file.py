"""Read and write tickets: a network's config, its surviving weights and their masks, in one safetensors file.

A pruned weight NAME is stored as ``NAME.mask`` (its alive bits, packed eight to a byte, in row-major
order) and ``NAME.values`` (float32, the alive entries); every other tensor as it is. The metadata
holds ``format``, ``config`` and ``statistics`` (JSON).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.detection import SIGNATURE, infer_config
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.architectures.promptir.topology import unused_weights
from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.tickets.packing import MASK, VALUES, TicketError, pack_weight, unpack_weight

_FAMILY = "mirl-sparse ticket"  # how the format of any version begins
FORMAT = f"{_FAMILY} 1"
TICKET_FILE = "ticket.safetensors"  # in a folder or repository that holds a ticket
_FIRST_NORM = "encoder_level1.0.norm1.body.weight"
NETWORK_FORMAT = f"{_FAMILY} 2"  # of a ticket of another architecture: `network_file`


def is_ticket(path: Path) -> bool:
    """Return whether a file says of itself that it is a ticket, of this version or another."""
    return _format(path).startswith(_FAMILY)


def is_network_ticket(path: Path) -> bool:
    """Return whether a file says of itself that it is a ticket of another architecture than PromptIR."""
    return _format(path) == NETWORK_FORMAT


def _format(path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get("format", ""))
    except (SafetensorError, OSError):
        return ""


def pack(network: PromptIR, statistics: Mapping[str, Any]) -> bytes:
    """Return the content of a ticket file.

    Args:
        network: The network; its zeros are its mask. Layers that the forward pass never uses are left out.
        statistics: Figures that the ticket holds about itself, as JSON holds them.
    """
    tensors: dict[str, Tensor] = {}
    config = replace(network.config, unused_layers=False)
    unused = unused_weights(network.config)
    for name, value in network.state_dict().items():
        if name in unused:
            continue
        if value.ndim > 1 and name.endswith("weight") and not value.all():
            tensors |= pack_weight(name, value)
        else:
            tensors[name] = value.contiguous()
    return save(
        tensors,
        {"format": FORMAT, "config": json.dumps(config.to_dict()), "statistics": json.dumps(statistics)},
    )


def unpack(data: bytes) -> tuple[PromptIR, dict[str, Any]]:
    """Return the network, in eval mode, and the statistics of a ticket's content.

    The data may come from anywhere: no memory is allocated that is not in proportion to it.

    Args:
        data: Content of a ticket, as `pack` returns it.

    Raises:
        TicketError: The data are no ticket, are damaged, or are of another version.
    """
    try:
        stored, metadata = load(data), read_metadata(data)
        if metadata.get("format") == NETWORK_FORMAT:
            name = json.loads(metadata["architecture"])["name"]
            raise TicketError(
                f"is a ticket of {name}; expected one of a PromptIR (mirl_sparse.load_restorer loads both)"
            )
        if metadata.get("format") != FORMAT:
            raise TicketError(
                f"its format is {metadata.get('format')!r}; expected {FORMAT!r}:"
                " convert the checkpoint (again)"
            )
        network = _network(PromptIRConfig.from_dict(json.loads(metadata["config"])), stored)
        return network, json.loads(metadata.get("statistics", "{}"))
    except UserError:
        raise
    except KeyError as error:
        raise TicketError(f"lacks {error}; the ticket is damaged, convert the checkpoint again") from None
    except (SafetensorError, RuntimeError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise TicketError(f"no ticket ({reason}); expected a file that mirl-sparse convert wrote") from None


def read_metadata(data: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors file's content."""
    header = int.from_bytes(data[:8], "little")  # of a safetensors file: its length, then JSON
    return json.loads(data[8 : 8 + header]).get("__metadata__", {})


def _network(config: PromptIRConfig, stored: dict[str, Tensor]) -> PromptIR:
    """Return the network of a config with the tensors of a ticket, which are taken out of ``stored``."""
    if (blocks := sum(config.num_blocks) + config.num_refinement_blocks) > len(stored):
        raise TicketError(f"its config has {blocks} blocks, for which it holds {len(stored)} tensors")
    with torch.device("meta"):
        network = PromptIR(config)
    state = {name: _take(name, value.shape, stored) for name, value in network.state_dict().items()}
    if stored:
        raise TicketError(f"holds a tensor that no such network has, {min(stored)}")
    network.load_state_dict(state, assign=True)  # to_empty would import sympy: half a second
    return network.eval()


def network_of_tensors(stored: Mapping[str, Tensor]) -> PromptIR:
    """Return the network of a ticket's tensors alone, without the metadata that names its config.

    A mask does not tell the shape of its weight. The two kinds of weights that decide the config follow from
    the widths of the norms, which are never masked, and from the length of the mask.

    Args:
        stored: The tensors of a PromptIR's ticket.

    Raises:
        TicketError: They are damaged.
        DetectionError: They are not those of a ticket.
    """
    shapes = {name.removesuffix(MASK).removesuffix(VALUES): value for name, value in stored.items()}
    for name, value in stored.items():
        weight = name.removesuffix(MASK)
        if weight != name and (shape := _decisive_shape(weight, 8 * value.numel(), stored)):
            shapes[weight] = torch.empty(shape, device="meta")
    try:
        return _network(infer_config(shapes), dict(stored))
    except KeyError as error:
        raise TicketError(f"lacks {error}; the ticket is damaged, convert the checkpoint again") from None


def _decisive_shape(name: str, bits: int, stored: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Return the shape of a masked weight by which `infer_config` knows widths; None of any other weight.

    Args:
        name: Name of the weight.
        bits: Length of its mask, of which up to seven bits are not used.
        stored: The tensors of the ticket.
    """
    block, is_project_in, _ = name.partition(".ffn.project_in.weight")
    norm = stored.get(f"{block}.norm2.body.weight" if is_project_in else _FIRST_NORM)
    if norm is None or norm.numel() == 0:
        return None
    channels = norm.numel()
    if is_project_in:
        return bits // (2 * channels) * 2, channels, 1, 1  # an even number of rows, so more than 7 bits apart
    return (channels, bits // (9 * channels), 3, 3) if name == SIGNATURE else None


def _take(name: str, shape: torch.Size, stored: dict[str, Tensor]) -> Tensor:
    """Return the tensor of a name in its shape, finite and float32, and take it out of ``stored``."""
    if name in stored:
        value = stored.pop(name).clone()  # of the file's bytes
    else:
        value = unpack_weight(name, shape, stored.pop(name + MASK), stored.pop(name + VALUES))
    if value.shape != shape:
        raise TicketError(f"{name} is {tuple(value.shape)}; expected {tuple(shape)}")
    if value.dtype != torch.float32 or not value.isfinite().all():
        raise TicketError(f"{name} is {value.dtype}, or not finite; expected finite float32 weights")
    return value


def write_ticket(path: Path, network: PromptIR, statistics: Mapping[str, Any]) -> None:
    """Write a ticket file, whole or not at all.

    Args:
        path: The file.
        network: The network, as `pack` takes it.
        statistics: The statistics, as `pack` takes them.

    Raises:
        TicketError: The file cannot be written.
    """
    try:
        write_whole(path, pack(network, statistics))
    except OSError as error:
        raise TicketError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_ticket(path: Path) -> tuple[PromptIR, dict[str, Any]]:
    """Return the network, in eval mode, and the statistics of a ticket file.

    Raises:
        TicketError: The file cannot be read or holds no ticket.
    """
    try:
        return unpack(path.read_bytes())
    except OSError as error:
        raise TicketError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UserError as error:
        raise TicketError(f"{path}: {error}") from None
