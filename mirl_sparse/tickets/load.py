"""Load a network from whatever file holds one."""

from __future__ import annotations

from pathlib import Path

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.tickets.checkpoint import read_checkpoint
from mirl_sparse.tickets.file import is_ticket, read_ticket


def load_network(path: Path) -> PromptIR:
    """Return the network of a ticket or a checkpoint, whichever the file is.

    Raises:
        TicketError: The file says that it is a ticket and cannot be read as one.
        CheckpointError: The file is no ticket and no checkpoint of a PromptIR.
    """
    return read_ticket(path)[0] if is_ticket(path) else read_checkpoint(path).network()
