"""Find ticket files: by path, by the name of a shipped ticket, on the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from mirl_sparse.tickets.file import TICKET_FILE, TicketError

SHIPPED = Path(__file__).parent / "shipped"
_SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".mirl")  # of files, not of repositories
_REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")


def shipped_names() -> list[str]:
    """Return the names of the tickets that come with the package, sorted.

    Examples:
        >>> shipped_names()
        ['haze', 'small']
    """
    return sorted(p.stem for p in SHIPPED.glob("*.safetensors"))


def find_ticket(source: str | Path) -> Path:
    """Return the file of a ticket.

    Args:
        source: The first of these that exists: a file, the name of a shipped ticket, a folder that
            `SparseRestorer.save_pretrained` wrote, a repository of the Hugging Face Hub ("user/name", or
            "user/name@revision"). The Hub is not asked for names that begin with a local folder, or end as
            files do. What it has is downloaded once.

    Raises:
        TicketError: It is none of these, or cannot be downloaded.
    """
    if os.path.isfile(source):  # unlike Path.is_file, never raises
        return Path(source)
    if str(source) in shipped_names():
        return SHIPPED / f"{source}.safetensors"
    if str(source) and os.path.isfile(saved := os.path.join(source, TICKET_FILE)):
        return Path(saved)
    problem = f"is a folder without {TICKET_FILE}" if os.path.isdir(source) else "no such file"
    repository = _REPOSITORY.fullmatch(str(source))
    is_path = Path(source).suffix in _SUFFIXES or os.path.isdir(str(source).split("/")[0])
    if repository and not is_path:
        if find_spec("huggingface_hub"):
            from mirl_sparse.tickets.hub import download

            return download(*repository.groups())
        problem += " (for a ticket of the Hugging Face Hub, install the extra hub)"
    raise TicketError(f"{source}: {problem}, nor a shipped ticket ({', '.join(shipped_names())})")
