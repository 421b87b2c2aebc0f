"""Find what restores photos by a ticket, for all commands that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mirl_sparse.choices import BackendName
from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    from mirl_sparse.photos import Restorer


def find_restorer(
    ticket: str, backend: str, memory: int | None, threads: int = 0
) -> tuple[Path, Callable[[], Restorer]]:
    """Return the file of a ticket or its program, and what loads it: without PyTorch where that will do.

    Args:
        ticket: A ticket file, a program, or the name of a shipped ticket.
        backend: One of the values of BackendName.
        memory: Bytes that the buffers may take; None for what is left.
        threads: Threads to use; 0 for what OMP_NUM_THREADS says, or as many as there are processors.

    Raises:
        UserError: A program is to run on another backend than the CPU, or there is no such ticket.
    """
    from mirl_kernels.core import native
    from mirl_sparse.program import SUFFIX, CompiledRestorer, find_program

    program, on_cpu = find_program(ticket), backend in (BackendName.AUTO, BackendName.CPU)
    if program == Path(ticket) and not on_cpu:
        raise UserError(f"{ticket}: a {SUFFIX} file runs on the CPU; expected --backend cpu, or a ticket")
    if program and on_cpu and (program == Path(ticket) or backend == BackendName.CPU or native.available()):
        return program, lambda: CompiledRestorer(program, memory, threads)
    import torch

    from mirl_sparse.restoring import load_restorer
    from mirl_sparse.tickets import find_ticket

    if threads:
        torch.set_num_threads(threads)
    return find_ticket(ticket), lambda: load_restorer(ticket, backend, memory)
