"""What a ticket was found to run fastest by on a GPU, kept in a file beside it: ``NAME.tuning.json`` for ``NAME.safetensors``.

The file holds ``ticket``, the SHA-256 of the ticket that it is about, and ``tunings``, one for each GPU, precision and version of
Triton that `tune` was run with; what is about another ticket or another GPU is not used. It decides how fast a ticket runs, and
which steps round as dense operators do, not what it restores.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch

from mirl_kernels._triton import Tile
from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.ticket import read_ticket
from mirl_sparse.triton_engine import TritonEngine, Tuning, check_gpu, device

FORMAT = "mirl-sparse tuning 1"


def beside(ticket: Path) -> Path:
    """Where the tunings of a ticket are."""
    return ticket.with_name(ticket.name.removesuffix(".safetensors") + ".tuning.json")


def tune(ticket: Path, side: int = 256, budget: float = 300, precision: str = "float16") -> Tuning:
    """Find what is fastest on this GPU for images of side x side pixels, in about ``budget`` seconds, and keep it beside the ticket.
    BackendError without a GPU."""
    check_gpu()
    target = beside(ticket)
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise UserError(f"{target}: may not be written; copy the ticket to where you may, and tune it there")
    try:
        tunings = _read(ticket)
    except UserError:  # damaged: it is written anew
        tunings = {}
    network = read_ticket(ticket)[0].to(device())
    found = TritonEngine(network, precision).tune(torch.rand(1, 3, side, side, device=device()), budget)
    tunings |= {_key(precision): found}
    values = {key: {"tiles": dict(t.tiles), "dense": sorted(t.dense)} for key, t in tunings.items()}
    kept = {"format": FORMAT, "ticket": _digest(ticket), "tunings": values}
    write_whole(target, json.dumps(kept, indent=1).encode() + b"\n")
    return found


def read_tuning(ticket: Path, precision: str) -> Tuning | None:
    """What is kept beside a ticket for this GPU. UserError where the file is damaged."""
    return _read(ticket).get(_key(precision))


def _key(precision: str) -> str:
    import triton

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "Triton's interpreter"
    return f"{gpu}, {precision}, Triton {triton.__version__}"


def _digest(ticket: Path) -> str:
    return hashlib.sha256(ticket.read_bytes()).hexdigest()


def _read(ticket: Path) -> dict[str, Tuning]:
    path = beside(ticket)
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if (kept["format"], kept["ticket"]) != (FORMAT, _digest(ticket)):
            return {}
        return {
            key: Tuning(
                {compiled: Tile(*tile) for compiled, tile in values["tiles"].items()}, frozenset(values["dense"])
            )
            for key, values in kept["tunings"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); remove it, or run mirl-sparse tune again") from None
