"""Offer ``mirl-sparse restore``: photos in, better photos out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mirl_sparse.choices import BackendName
from mirl_sparse.cli.printing import parse_bytes
from mirl_sparse.defaults import TICKET
from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    from mirl_sparse.photos import Job


def restore(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="A file, a folder, or - for standard output; earlier results are replaced."
        ),
    ] = None,
    ticket: Annotated[str, typer.Option(help="A ticket file or the name of a shipped one.")] = TICKET,
    backend: Annotated[
        str, typer.Option(help=f"One of {BackendName.names()}; triton is for a GPU.")
    ] = BackendName.AUTO.value,
    format: Annotated[str | None, typer.Option(help="Write this format instead of the input's.")] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="Such as 4G or 500M; beyond it, photos are restored in tiles. [default: what is left]"
        ),
    ] = None,
) -> None:
    """Restore photos: noise, rain and haze."""
    from mirl_sparse.photos import list_jobs, run_jobs
    from mirl_sparse.runtime.restorer import SparseRestorer

    jobs = list_jobs(inputs, output, format)
    restorer = SparseRestorer.from_pretrained(ticket, backend, parse_bytes(max_memory))
    done = 0

    def report(job: Job, error: UserError | None, seconds: float) -> None:
        nonlocal done
        done += 1
        outcome = f"failed: {error}" if error else f"{job}  {seconds:.2f} s"
        print(f"[{done}/{len(jobs)}] {outcome}", file=sys.stderr)

    if run_jobs(jobs, restorer, report):
        raise typer.Exit(1)
