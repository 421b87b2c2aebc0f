"""Read, describe and write tickets, and read the checkpoints that they are made of."""

from mirl_sparse.tickets.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from mirl_sparse.tickets.dead_channels import remove_dead_channels
from mirl_sparse.tickets.description import LayerReport, Report, describe
from mirl_sparse.tickets.file import TicketError, is_ticket, pack, read_ticket, unpack, write_ticket
from mirl_sparse.tickets.load import load_network
from mirl_sparse.tickets.lookup import find_ticket, shipped_names
from mirl_sparse.tickets.torch_pruning import remove_pruning

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LayerReport",
    "Report",
    "TicketError",
    "describe",
    "find_ticket",
    "is_ticket",
    "load_network",
    "pack",
    "read_checkpoint",
    "read_ticket",
    "remove_dead_channels",
    "remove_pruning",
    "shipped_names",
    "unpack",
    "write_ticket",
]
