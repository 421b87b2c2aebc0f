"""Offer ``mirl-sparse batch``: restore all photos of a folder or an object store."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mirl_sparse.choices import BackendName, EngineName
from mirl_sparse.cli.options import Backend, Metadata, Strength, Ticket
from mirl_sparse.cli.printing import parse_bytes
from mirl_sparse.defaults import TICKET
from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    from mirl_sparse.batch.dispatch import Pool
    from mirl_sparse.batch.run import Batch

_STOPPED = 130  # exit status, as of a program that Ctrl+C ends


def batch(
    source: Annotated[str, typer.Argument(help="A folder or store of photos, such as s3://bucket/photos.")],
    target: Annotated[str, typer.Argument(help="A folder or store for the results and the report.")],
    ticket: Ticket = TICKET,
    backend: Backend = BackendName.AUTO.value,
    format: Annotated[
        str | None, typer.Option(help="Write this format; the suffix is appended to other names.")
    ] = None,
    strength: Strength = 1.0,
    metadata: Metadata = True,
    engine: Annotated[
        EngineName, typer.Option(help="Workers on this machine, or on a Ray cluster.")
    ] = EngineName.LOCAL,
    workers: Annotated[
        int | None, typer.Option(help="How many workers; by default what the processors allow.", min=1)
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of a worker; by default its share of the processors.", min=1)
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="The Ray cluster; by default RAY_ADDRESS, or one on this machine.")
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(help="Restore the keys in this file: text, CSV or Parquet.")
    ] = None,
    shard: Annotated[str, typer.Option(help="i/n: do the i-th of n shares, as one job of an array.")] = "1/1",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try photos again that failed before.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Look for every result that the report names.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that one photo may take.", min=0.1)] = 1800.0,
    max_memory: Annotated[
        str | None,
        typer.Option(help="Of one worker, such as 4G; beyond it, photos are restored in tiles."),
    ] = None,
    storage_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for fsspec; may be given several times.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be restored to where; write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Restore all photos of a folder or an object store, here or on a cluster; go on where it stopped."""
    from mirl_sparse.batch.keys import Shard
    from mirl_sparse.batch.run import Batch, Selection
    from mirl_sparse.batch.stores import Address
    from mirl_sparse.batch.worker import WorkerSettings
    from mirl_sparse.photos import Manner
    from mirl_sparse.photos.jobs import known_suffix

    options = parse_options(storage_option or [])
    workers, threads = _sizes(engine, workers, threads)
    settings = WorkerSettings(
        Address(source, options),
        Address(target, options),
        ticket,
        backend,
        Manner(strength, metadata),
        None if format is None else known_suffix(format),
        threads,
        parse_bytes(max_memory),
    )
    listed = None if manifest is None else Address(manifest, options)
    prepared = Batch(settings, Selection(listed, Shard.parse(shard), retry_failed, verify))
    if dry_run:
        _list(prepared)
        return
    _run(prepared, lambda: _pool(prepared, engine, workers, ray_address), timeout, quiet)


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Return what ``--storage-option`` says: a value is JSON where it can be read so, else a text.

    Raises:
        UserError: A pair has no equals sign.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"--storage-option is {pair!r}; expected KEY=VALUE, such as anon=true")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def _sizes(engine: EngineName, workers: int | None, threads: int | None) -> tuple[int | None, int]:
    """Return how many workers there are (None: as many as a cluster has room for), and threads of each."""
    from mirl_sparse.batch.worker import processors

    if engine == EngineName.RAY:
        return workers, threads or 1
    if workers is None:
        workers = max(1, processors() // (threads or 1))
    return workers, threads or max(1, processors() // workers)


def _pool(prepared: Batch, engine: EngineName, workers: int | None, address: str | None) -> Pool[Any]:
    if engine == EngineName.RAY:
        from mirl_sparse.batch.on_ray import RayPool

        return RayPool(prepared.settings, prepared.ticket, workers, address)
    from mirl_sparse.batch.local import LocalPool

    assert workers is not None
    return LocalPool(prepared.settings, workers)


def _list(prepared: Batch) -> None:
    from mirl_sparse.batch.keys import target_of
    from mirl_sparse.photos.photo import printable_path

    count = 0
    for task in prepared.tasks():
        count += 1
        target = target_of(task.key, prepared.settings.suffix).key
        print(f"{printable_path(task.key)} -> {printable_path(target)}")
    _say_left_out(prepared)
    print(f"{count:,} photos to restore; {prepared.tally}", file=sys.stderr)


def _run(prepared: Batch, start: Callable[[], Pool[Any]], timeout: float, quiet: bool) -> None:
    from mirl_sparse.batch.progress import say
    from mirl_sparse.batch.run import Stopped

    try:
        tally = prepared.run(start, timeout, quiet)
    except Stopped as stopped:
        say(f"stopped: {stopped}; the same command goes on")
        raise typer.Exit(_STOPPED) from None
    _say_left_out(prepared)
    if not quiet or tally.failures:
        say(f"{tally}; {tally.per_hour:,.0f} photos per hour")
    if tally.failures or tally.failed_before:
        say(f"mirl-sparse batch-status {prepared.settings.target} says why")
        raise typer.Exit(1)


def _say_left_out(prepared: Batch) -> None:
    from mirl_sparse.photos.inputs import listed

    if prepared.left_out:
        print(f"left out what holds no readable image: {listed(prepared.left_out)}", file=sys.stderr)
