"""Load a network from whatever file holds one."""

from __future__ import annotations

from pathlib import Path

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.tickets.checkpoint import read_checkpoint
from mirl_sparse.tickets.file import is_ticket, read_ticket


def load(path: Path) -> PromptIR:
    """The network of a ticket or a checkpoint, whichever the file is."""
    return read_ticket(path)[0] if is_ticket(path) else read_checkpoint(path).network()
