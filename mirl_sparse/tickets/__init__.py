"""Read, describe and write tickets, and read the checkpoints that they are made of."""

from mirl_sparse.tickets.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from mirl_sparse.tickets.dead_channels import remove_dead_channels
from mirl_sparse.tickets.description import LayerReport, Report, describe
from mirl_sparse.tickets.file import is_network_ticket, is_ticket, pack, read_ticket, unpack, write_ticket
from mirl_sparse.tickets.load import load_network
from mirl_sparse.tickets.lookup import find_ticket, shipped_names
from mirl_sparse.tickets.network_checkpoint import load_any_network, read_any_checkpoint
from mirl_sparse.tickets.network_file import (
    pack_network,
    read_network_ticket,
    unpack_network,
    write_network_ticket,
)
from mirl_sparse.tickets.packing import TicketError
from mirl_sparse.tickets.torch_pruning import remove_pruning

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LayerReport",
    "Report",
    "TicketError",
    "describe",
    "find_ticket",
    "is_network_ticket",
    "is_ticket",
    "load_any_network",
    "load_network",
    "pack",
    "pack_network",
    "read_any_checkpoint",
    "read_checkpoint",
    "read_network_ticket",
    "read_ticket",
    "remove_dead_channels",
    "remove_pruning",
    "shipped_names",
    "unpack",
    "unpack_network",
    "write_network_ticket",
    "write_ticket",
]
