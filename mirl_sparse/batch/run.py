"""Run a batch: list photos, have them restored, report each."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mirl_sparse.batch.dispatch import Dispatcher, Pool
from mirl_sparse.batch.feed import Feed
from mirl_sparse.batch.history import History, Past
from mirl_sparse.batch.keys import Item, Shard
from mirl_sparse.batch.manifest import read_manifest
from mirl_sparse.batch.progress import Progress, Tally, say
from mirl_sparse.batch.report import Outcome, ReportWriter, Status
from mirl_sparse.batch.stores import Address, FolderStore, Store, StoreError, open_store
from mirl_sparse.batch.worker import Task, WorkerSettings
from mirl_sparse.errors import UserError
from mirl_sparse.photos.photo import printable_path
from mirl_sparse.restoring import find_restorer

_GRACE = 10.0  # seconds that photos are waited for after a signal
_MAX_UNREACHABLE = 20  # in a row, beside two for each worker


@dataclass(frozen=True)
class Selection:
    """Say which photos are restored.

    Attributes:
        manifest: A list of keys; None for all photos of the source.
        shard: Which share of them.
        retry_failed: Whether photos that failed before are tried again.
        verify: Whether each result that the report names is looked for.
    """

    manifest: Address | None = None
    shard: Shard = Shard()  # noqa: RUF009  # it is frozen
    retry_failed: bool = False
    verify: bool = False


class Batch:
    """Prepare a run: open both stores and read what earlier runs have done.

    Args:
        settings: What workers do.
        selection: Which photos they get.

    Raises:
        UserError: A store, the ticket or the report cannot be used, or results would replace photos.
    """

    def __init__(self, settings: WorkerSettings, selection: Selection) -> None:
        self._selection = selection
        self._source, self._target = open_store(settings.source), open_store(settings.target)
        self._skip = _results_below(self._source, self._target)
        self.ticket: Path = find_restorer(settings.ticket, settings.backend)[0]
        self.settings = replace(settings, ticket=str(self.ticket))  # workers look nothing up
        try:
            content = self.ticket.read_bytes()
        except OSError as error:
            raise UserError(f"{self.ticket}: cannot be read ({error.strerror})") from None
        self._hashes = settings.hashes(content)
        self._history = History(self._target, self._hashes[1], selection.shard)
        self.tally = Tally()
        self.left_out: Counter[str] = Counter()
        self._unreachable = 0  # photos in a row

    def tasks(self) -> Iterator[Task]:
        """Yield what there is to do, as it is listed.

        Raises:
            UserError: The source cannot be listed, or holds no photo.
        """
        count = 0
        for item in self._items():
            count += 1
            if not self._selection.shard.holds(item.key):
                continue
            past = self._history.of(item)
            if past is Past.FINISHED and self._selection.verify:
                yield Task(item.key, item.etag, only_if_missing=True)
            elif past is Past.FINISHED:
                self.tally.up_to_date += 1
            elif past is Past.FAILED and not self._selection.retry_failed:
                self.tally.failed_before += 1
            else:
                yield Task(item.key, item.etag)
        if not count:
            raise UserError(f"{self._selection.manifest or self.settings.source}: names no photo")

    def run(self, start: Callable[[], Pool[Any]], timeout: float, is_quiet: bool = False) -> Tally:
        """Restore the photos.

        Args:
            start: Starts the workers; it is called if there is something to do.
            timeout: Seconds that one photo may take.
            is_quiet: Whether progress is not shown.

        Returns:
            How many photos there were of each kind.

        Raises:
            UserError: The source cannot be listed, no worker starts, or a store answers no more. What was
                done until then is reported.
            Stopped: A signal ended the run.
        """
        if isinstance(self._target, FolderStore):
            self._target.clean()
        feed = Feed(self.tasks())
        try:
            if feed.has_any():
                self._dispatch(start(), feed, timeout, is_quiet)
        finally:
            feed.close()
        return self.tally

    def _dispatch(self, pool: Pool[Any], feed: Feed, timeout: float, is_quiet: bool) -> None:
        self.tally.start = time.monotonic()
        report, dispatcher = ReportWriter(self._target, *self._hashes), Dispatcher(pool, feed, timeout)
        try:
            with Progress(self.tally, is_quiet) as progress, _stopping(dispatcher) as stop:
                for outcome in dispatcher.run():
                    if outcome:
                        self._take(outcome, report, 2 * len(pool))
                    self.tally.listed = feed.total
                    report.write_due()
                    progress.show(len(pool))
        finally:
            pool.close()
            report.close()
        if stop.is_set():
            raise Stopped(self.tally)

    def _items(self) -> Iterator[Item]:
        if self._selection.manifest is not None:
            return read_manifest(self._selection.manifest, self._source.place)
        return self._source.items(self._skip, self.left_out)

    def _take(self, outcome: Outcome, report: ReportWriter, in_flight: int) -> None:
        """Count and report a photo; raise StoreError where none gets through any more."""
        self.tally.add(outcome)
        if not outcome.is_old:
            report.add(outcome)
        self._unreachable = self._unreachable + 1 if outcome.status is Status.UNREACHABLE else 0
        if self._unreachable > _MAX_UNREACHABLE + in_flight:
            raise StoreError(f"{self._unreachable} photos in a row failed for their store ({outcome.error})")


class Stopped(Exception):
    """Report that a signal ended a run.

    Args:
        tally: What was done until then.
    """

    def __init__(self, tally: Tally) -> None:
        super().__init__(str(tally))
        self.tally = tally


@contextmanager
def _stopping(dispatcher: Dispatcher[Any]) -> Iterator[threading.Event]:
    """Let SIGINT and SIGTERM stop a run gently, and a second one at once; yield whether there was one."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        dispatcher.stop(_GRACE)
        say(f"stopping: photos that are being restored have {_GRACE:.0f} s")

    earlier: dict[int, Callable[..., Any] | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _results_below(source: Store, target: Store) -> str:
    """Return which keys of the source are results: those of a target inside of it.

    Raises:
        UserError: Results could replace photos.
    """
    if source.place.startswith(target.place):
        place = printable_path(source.place)
        raise UserError(
            f"{place}: the source lies in the target, and photos are never replaced; choose another target"
        )
    return target.place.removeprefix(source.place) if target.place.startswith(source.place) else ""
