"""Find ticket files, by path or by the name of a ticket that comes with the package."""

from __future__ import annotations

import os
from pathlib import Path

from mirl_sparse.tickets.file import TicketError

SHIPPED = Path(__file__).parent / "shipped"


def shipped_names() -> list[str]:
    """Return the names of the tickets that come with the package, sorted.

    Examples:
        >>> shipped_names()
        ['haze', 'small']
    """
    return sorted(p.stem for p in SHIPPED.glob("*.safetensors"))


def find_ticket(source: str | Path) -> Path:
    """Return the file that a path or the name of a shipped ticket means.

    Args:
        source: A file goes before a name, a name before a folder.

    Raises:
        TicketError: It is neither a file nor the name of a shipped ticket.
    """
    if os.path.isfile(source):  # unlike Path.is_file, never raises
        return Path(source)
    if str(source) in shipped_names():
        return SHIPPED / f"{source}.safetensors"
    problem = "is a folder, not a file" if os.path.isdir(source) else "no such file"
    raise TicketError(f"{source}: {problem}, nor a shipped ticket ({', '.join(shipped_names())})")
