"""Find what a ticket runs fastest by on the GPU at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.runtime.triton import TritonEngine, Tuning, check_gpu, device
from mirl_sparse.runtime.tuning import FORMAT, beside, digest, read_tunings, tuning_key
from mirl_sparse.tickets.file import read_ticket


def tune(ticket: Path, side: int = 256, budget: float = 300, precision: str = "float16") -> Tuning:
    """Find what is fastest on this GPU for images of side x side pixels, in about ``budget`` seconds, and keep it beside the ticket.
    BackendError without a GPU."""
    check_gpu()
    target = beside(ticket)
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"{target}: may not be written; copy the ticket to where you may, and tune it there")
    try:
        tunings = read_tunings(ticket)
    except UserError:  # damaged: it is written anew
        tunings = {}
    network = read_ticket(ticket)[0].to(device())
    found = TritonEngine(network, precision).tune(torch.rand(1, 3, side, side, device=device()), budget)
    tunings |= {tuning_key(precision): found}
    values = {key: {"tiles": dict(t.tiles), "dense": sorted(t.dense)} for key, t in tunings.items()}
    kept = {"format": FORMAT, "ticket": digest(ticket), "tunings": values}
    write_whole(target, json.dumps(kept, indent=1).encode() + b"\n")
    return found
