"""Keep the settings with which a ticket runs fastest on a GPU in a file.

The file lies beside the ticket: ``NAME.tuning.json`` for ``NAME.safetensors``. It holds ``ticket``, the
SHA-256 of the ticket, and ``tunings``, one for each GPU, precision and version of Triton that the ticket was
tuned for. Tunings of another ticket or another GPU are not used. A tuning decides how fast a ticket runs, and
which steps round as dense operators do; it does not change what the ticket restores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mirl_kernels.core.triton import Tile
from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole

_FORMAT = "mirl-sparse tuning 1"


@dataclass(frozen=True)
class Tuning:
    """Hold the fastest settings of one network on one GPU.

    Attributes:
        tiles: The tile of each kernel, by the key that says how the kernel is compiled.
        dense: The names of the steps that PyTorch's dense operators do faster than the sparse kernels.
    """

    tiles: Mapping[str, Tile]
    dense: frozenset[str]


def tuning_path(ticket: Path) -> Path:
    """Return the path of the file that keeps the tunings of a ticket."""
    return ticket.with_name(ticket.name.removesuffix(".safetensors") + ".tuning.json")


def tuning_key(precision: str) -> str:
    """Return the key of a tuning for the current GPU, this precision and the installed version of Triton."""
    import triton

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "Triton's interpreter"
    return f"{gpu}, {precision}, Triton {triton.__version__}"


def _digest(ticket: Path) -> str:
    """Return the SHA-256 of a ticket file."""
    return hashlib.sha256(ticket.read_bytes()).hexdigest()


def read_tuning(ticket: Path, precision: str) -> Tuning | None:
    """Return the tuning of a ticket for this GPU and precision, or None if there is none.

    Raises:
        UserError: If the tuning file is damaged.
    """
    return read_tunings(ticket).get(tuning_key(precision))


def read_tunings(ticket: Path) -> dict[str, Tuning]:
    """Return all tunings of a ticket, by `tuning_key`.

    Returns:
        Empty if there is no tuning file, or it is of another ticket or another version of the format.

    Raises:
        UserError: If the tuning file is damaged.
    """
    path = tuning_path(ticket)
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if (stored["format"], stored["ticket"]) != (_FORMAT, _digest(ticket)):
            return {}
        return {
            key: Tuning(
                {compiled: Tile(*tile) for compiled, tile in values["tiles"].items()},
                frozenset(values["dense"]),
            )
            for key, values in stored["tunings"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error!r}); remove it, or run mirl-sparse tune again"
        ) from None


def write_tunings(ticket: Path, tunings: Mapping[str, Tuning]) -> None:
    """Replace the tuning file of a ticket; ``tunings`` are by `tuning_key`."""
    values = {key: {"tiles": dict(t.tiles), "dense": sorted(t.dense)} for key, t in tunings.items()}
    stored = {"format": _FORMAT, "ticket": _digest(ticket), "tunings": values}
    write_whole(tuning_path(ticket), json.dumps(stored, indent=1).encode() + b"\n")
