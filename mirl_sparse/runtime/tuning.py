"""What a ticket was found to run fastest by on a GPU, kept in a file beside it: ``NAME.tuning.json`` for ``NAME.safetensors``.

The file holds ``ticket``, the SHA-256 of the ticket that it is about, and ``tunings``, one for each GPU, precision and version of
Triton that `tune` was run with; what is about another ticket or another GPU is not used. It decides how fast a ticket runs, and
which steps round as dense operators do, not what it restores.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from mirl_kernels.core.triton import Tile
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.triton import Tuning

FORMAT = "mirl-sparse tuning 1"


def beside(ticket: Path) -> Path:
    """Where the tunings of a ticket are."""
    return ticket.with_name(ticket.name.removesuffix(".safetensors") + ".tuning.json")


def read_tuning(ticket: Path, precision: str) -> Tuning | None:
    """What is kept beside a ticket for this GPU. UserError where the file is damaged."""
    return read_tunings(ticket).get(tuning_key(precision))


def tuning_key(precision: str) -> str:
    import triton

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "Triton's interpreter"
    return f"{gpu}, {precision}, Triton {triton.__version__}"


def digest(ticket: Path) -> str:
    return hashlib.sha256(ticket.read_bytes()).hexdigest()


def read_tunings(ticket: Path) -> dict[str, Tuning]:
    path = beside(ticket)
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if (kept["format"], kept["ticket"]) != (FORMAT, digest(ticket)):
            return {}
        return {
            key: Tuning(
                {compiled: Tile(*tile) for compiled, tile in values["tiles"].items()},
                frozenset(values["dense"]),
            )
            for key, values in kept["tunings"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error!r}); remove it, or run mirl-sparse tune again"
        ) from None
