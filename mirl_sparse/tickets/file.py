"""Tickets: a network's config, its surviving weights and their masks, in one safetensors file.

A pruned weight NAME is stored as ``NAME.mask`` (its alive bits, packed eight to a byte, in row-major
order) and ``NAME.values`` (float32, the alive entries); every other tensor as it is. The metadata
holds ``format``, ``config`` and ``statistics`` (JSON).
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from mirl_kernels.ops.gdfn import live_pairs
from mirl_kernels.ops.mdta import live_channels
from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR, TransformerBlock
from mirl_sparse.errors import UserError, printable
from mirl_sparse.files import write_whole

FORMAT = "mirl-sparse ticket 1"
SHIPPED = Path(__file__).parent / "shipped"


class TicketError(UserError):
    """A file that holds no ticket; the message is one line for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def shipped() -> list[str]:
    """The names of the tickets that come with the package."""
    return sorted(p.stem for p in SHIPPED.glob("*.safetensors"))


def find(source: str | Path) -> Path:
    """The file meant by a path or by a shipped ticket's name; a file goes before a name, a folder does not."""
    if os.path.isfile(source):  # unlike Path.is_file, never raises
        return Path(source)
    if str(source) in shipped():
        return SHIPPED / f"{source}.safetensors"
    raise TicketError(f"{source}: no such file, nor a shipped ticket ({', '.join(shipped())})")


@torch.no_grad()
def remove_dead_channels(network: PromptIR) -> int:
    """Set to zero, exactly, every weight that cannot reach the result; returns how many that were.

    In GDFN a pair of hidden channels dies with either half or with its reader; for MDTA see `live_channels`.
    The network's answers do not change.
    """
    removed = 0

    def clear(weight: Tensor, dead: Tensor) -> None:
        nonlocal removed
        removed += int((weight[dead] != 0).sum())
        weight[dead] = 0

    for block in network.modules():
        if not isinstance(block, TransformerBlock):
            continue
        ffn, attn = block.ffn, block.attn
        dead = torch.ones(ffn.project_out.weight.shape[1], dtype=torch.bool)
        dead[live_pairs(ffn.project_in.weight, ffn.dwconv.weight, ffn.project_out.weight)] = False
        clear(ffn.project_in.weight, dead.repeat(2))
        clear(ffn.dwconv.weight, dead.repeat(2))
        clear(ffn.project_out.weight.transpose(0, 1), dead)
        heads = attn.temperature.shape[0]
        live = live_channels(attn.qkv.weight, attn.qkv_dwconv.weight, attn.project_out.weight, heads)
        channels = torch.ones(attn.qkv.weight.shape[0], dtype=torch.bool)
        for i, index in enumerate(live):
            channels[index + i * attn.qkv.weight.shape[1]] = False
        clear(attn.qkv.weight, channels)
        clear(attn.qkv_dwconv.weight, channels)
        mute = torch.ones(heads, attn.project_out.weight.shape[1] // heads, dtype=torch.bool)
        mute[live[2] // mute.shape[1]] = False
        clear(attn.project_out.weight.transpose(0, 1), mute.flatten())
    return removed


def is_ticket(path: Path) -> bool:
    """Whether a file says of itself that it is a ticket."""
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get("format", "")).startswith("mirl-sparse ticket")
    except (SafetensorError, OSError):
        return False


def pack(network: PromptIR, statistics: dict[str, Any]) -> bytes:
    """The ticket file of a network whose zeros are its mask; layers that the forward pass never uses are left out."""
    tensors: dict[str, Tensor] = {}
    config = replace(network.config, unused_layers=False)
    used = PromptIR.names(config)
    for name, value in network.state_dict().items():
        if name not in used:
            continue
        alive = value != 0
        if value.ndim > 1 and name.endswith("weight") and not alive.all():
            tensors[f"{name}.mask"] = torch.from_numpy(np.packbits(alive.flatten().numpy()))
            tensors[f"{name}.values"] = value[alive].contiguous()
        else:
            tensors[name] = value.contiguous()
    return save(
        tensors,
        {"format": FORMAT, "config": json.dumps(config.to_dict()), "statistics": json.dumps(statistics)},
    )


def unpack(data: bytes) -> tuple[PromptIR, dict[str, Any]]:
    """The inverse of `pack`: (network in eval mode, statistics); TicketError says what is wrong with the data. It may come from
    anywhere: nothing is allocated that is not in proportion to it."""
    try:
        stored = load(data)
        header = int.from_bytes(data[:8], "little")  # of a safetensors file: its length, then JSON
        metadata = json.loads(data[8 : 8 + header]).get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise TicketError(
                f"its format is {metadata.get('format')!r}; expected {FORMAT!r}: convert the checkpoint (again)"
            )
        config = PromptIRConfig.from_dict(json.loads(metadata["config"]))
        if (blocks := sum(config.num_blocks) + config.num_refinement_blocks) > len(stored):
            raise TicketError(f"its config has {blocks} blocks, for which it holds {len(stored)} tensors")
        with torch.device("meta"):
            network = PromptIR(config)
        state = {}
        for name, value in network.state_dict().items():
            if name in stored:
                state[name] = stored.pop(name)
            else:
                state[name] = _unmasked(
                    name, value.shape, stored.pop(f"{name}.mask"), stored.pop(f"{name}.values")
                )
            if state[name].shape != value.shape:
                raise TicketError(f"{name} is {tuple(state[name].shape)}; expected {tuple(value.shape)}")
            if state[name].dtype != torch.float32 or not state[name].isfinite().all():
                raise TicketError(
                    f"{name} is {state[name].dtype}, or not finite; expected finite float32 weights"
                )
        if stored:
            raise TicketError(f"holds a tensor that no such network has, {sorted(stored)[0]}")
        network.to_empty(device="cpu").load_state_dict(state)
        return network.eval(), json.loads(metadata.get("statistics", "{}"))
    except UserError:
        raise
    except KeyError as error:
        raise TicketError(f"lacks {error}; the ticket is damaged, convert the checkpoint again") from None
    except (SafetensorError, RuntimeError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise TicketError(f"no ticket ({reason}); expected a file that mirl-sparse convert wrote") from None


def _unmasked(name: str, shape: torch.Size, bits: Tensor, values: Tensor) -> Tensor:
    if bits.dtype != torch.uint8 or bits.shape != (-(-shape.numel() // 8),):
        raise TicketError(
            f"its mask of {name} is {bits.dtype} {tuple(bits.shape)}; expected a bit for each of {shape.numel()} weights"
        )
    alive = torch.from_numpy(np.unpackbits(bits.numpy(), count=shape.numel()).astype(bool))
    if alive.sum() != values.numel():
        raise TicketError(f"has {values.numel()} values for {int(alive.sum())} alive weights of {name}")
    return torch.zeros(shape, dtype=torch.float32).masked_scatter_(alive.view(shape), values)


def write_ticket(path: Path, network: PromptIR, statistics: dict[str, Any]) -> None:
    """Write `pack`'s file, whole or not at all."""
    try:
        write_whole(path, pack(network, statistics))
    except OSError as error:
        raise TicketError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_ticket(path: Path) -> tuple[PromptIR, dict[str, Any]]:
    """(network in eval mode, statistics) of a ticket file."""
    try:
        return unpack(path.read_bytes())
    except OSError as error:
        raise TicketError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UserError as error:
        raise TicketError(f"{path}: {error}") from None
