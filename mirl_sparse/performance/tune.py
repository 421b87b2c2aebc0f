"""Find what a ticket runs fastest by on the GPU at hand, and keep it beside the ticket."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mirl_sparse.errors import UserError
from mirl_sparse.runtime.gpu import check_gpu, device
from mirl_sparse.runtime.triton import TritonEngine
from mirl_sparse.runtime.tuning import Tuning, read_tunings, tuning_key, tuning_path, write_tunings
from mirl_sparse.tickets.file import read_ticket


def tune(ticket: Path, side: int = 256, budget: float = 300, precision: str = "float16") -> Tuning:
    """Find what a ticket runs fastest by on this GPU, and keep it beside the ticket.

    Args:
        ticket: The ticket file.
        side: Side of the square image to be fast on, a multiple of the network's ``config.multiple``.
        budget: Seconds that the search takes, about.
        precision: Precision of activations: "float16", "bfloat16" or "float32".

    Raises:
        ConfigError: The network takes no image of this side.
        BackendError: There is no GPU.
        UserError: The folder of the tuning may not be written to; this is known before the search.
    """
    check_gpu()
    _check_writable(tuning_path(ticket))
    try:
        tunings = read_tunings(ticket)
    except UserError:  # damaged: it is written anew
        tunings = {}
    network = read_ticket(ticket)[0].to(device())
    network.config.check_side(side)
    tuning = TritonEngine(network, precision).tune(torch.rand(1, 3, side, side, device=device()), budget)
    write_tunings(ticket, tunings | {tuning_key(precision): tuning})
    return tuning


def _check_writable(target: Path) -> None:
    """Raise UserError unless `write_whole` may make a file beside the target."""
    folder = Path(os.path.realpath(target)).parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"{target}: may not be written, since {folder} may not; copy the ticket to where you may, and"
            " tune it there"
        )
