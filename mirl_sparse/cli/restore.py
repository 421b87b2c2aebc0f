"""Offer ``mirl-sparse restore``: restore photos and write them to files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from mirl_sparse.choices import BackendName
from mirl_sparse.cli.options import Backend, Metadata, Strength, Ticket
from mirl_sparse.cli.printing import parse_bytes
from mirl_sparse.defaults import TICKET
from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    from mirl_sparse.photos import Job, Manner, Restorer


def restore(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="A file, a folder, or - for standard output."),
    ] = None,
    ticket: Ticket = TICKET,
    backend: Backend = BackendName.AUTO.value,
    format: Annotated[str | None, typer.Option(help="Write this format instead of the input's.")] = None,
    strength: Strength = 1.0,
    metadata: Metadata = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Restore photos again whose results are up to date.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be restored to where; write nothing.")
    ] = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            help="Such as 4G or 500M, by default what is left; beyond it, photos are restored in tiles."
        ),
    ] = None,
    noise_level: Annotated[
        float | None,
        typer.Option(
            help="Standard deviation of the noise, 0 to 255, for networks that take it, such as DRUNet; by"
            " default 15.",
            min=0,
            max=255,
        ),
    ] = None,
) -> None:
    """Remove noise, rain and the marks of JPEG and WebP from photos; with --ticket haze, haze too."""
    from mirl_sparse.photos import Jobs, Manner, Records, run_jobs
    from mirl_sparse.photos.inputs import listed
    from mirl_sparse.photos.photo import printable_path
    from mirl_sparse.restoring import find_restorer

    memory = parse_bytes(max_memory)
    manner = Manner(strength, metadata)
    jobs = Jobs(inputs, output, format)
    if jobs.left_out:
        print(f"left out what holds no readable image: {listed(jobs.left_out)}", file=sys.stderr)
    many = len(jobs) > 1
    file, load = find_restorer(ticket, backend, memory)
    records = Records(_digest(file, manner, noise_level), is_new=many)
    is_kept = records.is_up_to_date if many and not overwrite else lambda job: False
    kept = sum(map(is_kept, jobs))
    if kept:
        print(f"{kept} results are up to date; --overwrite makes them again", file=sys.stderr)
    due = (job for job in jobs if not is_kept(job))
    if dry_run:
        for job in due:
            print(f"{job} -> {printable_path(job.target) if job.target else 'standard output'}")
        return
    restorer = load()
    if noise_level is not None:
        _set_noise_level(restorer, noise_level)
    done, total = 0, len(jobs) - kept
    with _progress(total) as show:

        def report(job: Job, error: UserError | None, seconds: float) -> None:
            nonlocal done
            done += 1
            outcome = f"failed: {error}" if error else f"{job}  {seconds:.2f} s"
            show(f"[{done}/{total}] {outcome}")

        try:
            failures = run_jobs(due, restorer, report, manner, records)
        except KeyboardInterrupt:
            if many:
                print(f"stopped after {done} of {total}; the same command goes on", file=sys.stderr)
            raise
    if failures:
        raise typer.Exit(1)


def _set_noise_level(restorer: Restorer, level: float) -> None:
    if getattr(restorer, "noise_level", None) is None:
        raise UserError("--noise-level is given, and the network of this ticket takes none; leave it out")
    restorer.noise_level = level  # type: ignore[attr-defined]


def _digest(ticket: Path, manner: Manner, noise_level: float | None) -> str:
    """Return what tells results apart that the same photo can have."""
    level = "" if noise_level is None else f" {noise_level}"
    return sha256(ticket.read_bytes() + f"{manner!r}{level}".encode()).hexdigest()


@contextmanager
def _progress(photos: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints the line of one photo; in a terminal, a bar counts several photos."""
    if photos < 2 or not sys.stderr.isatty():
        yield lambda line: print(line, file=sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]}")
    columns = (BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    # Standard output is left alone: a photo may be written to it.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as progress:
        task, start, done = progress.add_task("photos", total=photos, rate=""), perf_counter(), 0

        def show(line: str) -> None:
            progress.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
            nonlocal done
            done += 1
            progress.update(task, advance=1, rate=f"{done / (perf_counter() - start):.2g} photos/s")

        yield show
