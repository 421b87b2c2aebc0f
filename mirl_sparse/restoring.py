"""Find what restores photos by a ticket: its program where that will do, or its network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mirl_kernels.core import native
from mirl_sparse.choices import BackendName
from mirl_sparse.defaults import TICKET
from mirl_sparse.errors import UserError
from mirl_sparse.program import SUFFIX, CompiledRestorer, find_program

if TYPE_CHECKING:
    from mirl_sparse.photos import Restorer
    from mirl_sparse.runtime.restorer import SparseRestorer
    from mirl_sparse.sparsification.network_restorer import NetworkRestorer


def load_restorer(
    source: str | Path = TICKET, backend: str = BackendName.AUTO, max_memory: int | None = None
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
    from mirl_sparse.runtime.restorer import SparseRestorer
    from mirl_sparse.tickets import find_ticket, is_network_ticket, read_network_ticket

    file = find_ticket(source)
    if not is_network_ticket(file):
        return SparseRestorer.from_pretrained(file, backend, max_memory)
    from mirl_sparse.sparsification.network_restorer import NetworkRestorer

    weights = read_network_ticket(file)
    try:
        return NetworkRestorer(weights.network(), backend, max_memory)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error.__cause__


def find_restorer(
    ticket: str, backend: str = BackendName.AUTO, max_memory: int | None = None, threads: int = 0
) -> tuple[Path, Callable[[], Restorer]]:
    """Return the file of a ticket or its program, and what loads it: without PyTorch where that will do.

    Args:
        ticket: As for `load_restorer`, or a program.
        backend: One of the values of `BackendName`.
        max_memory: Bytes that the buffers may take; by default what is left.
        threads: Threads to use; 0 for what OMP_NUM_THREADS says, or as many as there are processors.

    Raises:
        UserError: A program is to run on another backend than the CPU, or there is no such ticket.
    """
    program, on_cpu = find_program(ticket), backend in (BackendName.AUTO, BackendName.CPU)
    if program == Path(ticket) and not on_cpu:
        raise UserError(f"{ticket}: a {SUFFIX} file runs on the CPU; expected --backend cpu, or a ticket")
    if program and on_cpu and (program == Path(ticket) or backend == BackendName.CPU or native.available()):
        return program, lambda: CompiledRestorer(program, max_memory, threads)
    from mirl_sparse.tickets import find_ticket

    file = find_ticket(ticket)

    def load() -> Restorer:
        import torch

        if threads:
            torch.set_num_threads(threads)
        return load_restorer(file, backend, max_memory)

    return file, load
