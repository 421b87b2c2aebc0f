"""Offer ``mirl-sparse restore``: restore photos and write them to files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    strength: Annotated[
        float, typer.Option(help="0 leaves a photo as it is, 1 restores it fully.", min=0, max=1)
    ] = 1.0,
    metadata: Annotated[
        bool, typer.Option(help="Keep EXIF, XMP, IPTC, resolution and text, or drop them.")
    ] = True,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="Such as 4G or 500M; beyond it, photos are restored in tiles. [default: what is left]"
        ),
    ] = None,
) -> None:
    """Remove noise, rain, haze and the marks of JPEG and WebP from photos."""
    from mirl_sparse.photos import Manner, list_jobs, run_jobs
    from mirl_sparse.runtime.restorer import SparseRestorer

    jobs = list_jobs(inputs, output, format)
    restorer = SparseRestorer.from_pretrained(ticket, backend, parse_bytes(max_memory))
    done = 0
    with _progress(len(jobs)) as show:

        def report(job: Job, error: UserError | None, seconds: float) -> None:
            nonlocal done
            done += 1
            outcome = f"failed: {error}" if error else f"{job}  {seconds:.2f} s"
            show(f"[{done}/{len(jobs)}] {outcome}")

        failures = run_jobs(jobs, restorer, report, Manner(strength, metadata))
    if failures:
        raise typer.Exit(1)


@contextmanager
def _progress(photos: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints the line of one photo; in a terminal, a bar counts several photos."""
    if photos < 2 or not sys.stderr.isatty():
        yield lambda line: print(line, file=sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Standard output is left alone: a photo may be written to it.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as progress:
        task = progress.add_task("photos", total=photos)

        def show(line: str) -> None:
            progress.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
            progress.advance(task)

        yield show
