"""Load the restorer of a ticket, whatever its architecture."""

from __future__ import annotations

from pathlib import Path

from mirl_sparse.defaults import TICKET
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.backends import AUTO
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.sparsification.network_restorer import NetworkRestorer
from mirl_sparse.tickets import find_ticket, is_network_ticket, read_network_ticket


def load_restorer(
    source: str | Path = TICKET, backend: str = AUTO, max_memory: int | None = None
) -> SparseRestorer | NetworkRestorer:
    """Return the restorer of a ticket: a `SparseRestorer` for a PromptIR, else a `NetworkRestorer`.

    Both are modules that take images (B, 3, H, W), and have ``restore`` for photos.

    Args:
        source: As for `mirl_sparse.SparseRestorer.from_pretrained`.
        backend: As for the class.
        max_memory: As for the class.

    Raises:
        UserError: If there is no such ticket, it is damaged, or spandrel, which knows its architecture, is
            not installed.
        BackendError: If the backend cannot run here.

    Examples:
        >>> from mirl_sparse import load_restorer
        >>> type(load_restorer("small")).__name__
        'SparseRestorer'
    """
    file = find_ticket(source)
    if not is_network_ticket(file):
        return SparseRestorer.from_pretrained(source, backend, max_memory)
    weights = read_network_ticket(file)
    try:
        return NetworkRestorer(weights.network(), backend, max_memory)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error.__cause__
