"""Batches for tests: folders of small photos, and workers inside of the process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mirl_sparse.batch.dispatch import Death, Event, Pool, Ready
from mirl_sparse.batch.report import Outcome, Report, Status
from mirl_sparse.batch.run import Batch, Selection
from mirl_sparse.batch.stores import Address, open_store
from mirl_sparse.batch.worker import Task, Worker, WorkerSettings
from mirl_sparse.photos import Manner


def make_photo(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), value, np.uint8)).save(path)


def settings(source: object, target: object, **more: object) -> WorkerSettings:
    """Strength 0 copies the pixels, which is quick."""
    options = {k: more.pop(k) for k in list(more) if k in ("endpoint_url",)}
    addresses = Address(str(source), options), Address(str(target), options)
    return WorkerSettings(*addresses, **({"ticket": "small", "backend": "auto", "manner": Manner(0)} | more))


class InlinePool(Pool[int]):
    """Restore photos in this process, in the order of the tasks; workers die where a test says so."""

    may_drain = True

    def __init__(
        self, settings: WorkerSettings, dies: Callable[[Task], Death | None], workers: int = 1
    ) -> None:
        super().__init__()
        self._worker, self._dies = Worker(settings, "here", 1), dies
        self._events: list[tuple[int, Event]] = []
        self._count, self.tasks, self.alone = 0, list[str](), list[str]()
        for _ in range(workers):
            self.add()

    def launch(self) -> int:
        self._count += 1
        self._events.append((self._count, Ready()))
        return self._count

    def send(self, worker: int, task: Task) -> None:
        self.tasks.append(task.key)
        if len(self.busy) == 1:
            self.alone.append(task.key)
        death = self._dies(task)
        self._events.append((worker, death or self._worker.run(task)))

    def end(self, worker: int) -> None:
        pass

    def events(self, seconds: float) -> list[tuple[int, Event]]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        pass


@dataclass
class Run:
    """Hold what a run in this process did."""

    tasks: list[str] = field(default_factory=list)
    counts: dict[Status, int] = field(default_factory=dict)
    alone: list[str] = field(default_factory=list)


def run(
    settings: WorkerSettings, selection: Selection | None = None, workers: int = 1, dies=lambda task: None
):
    """Run a batch in this process."""
    batch, pools = Batch(settings, selection or Selection()), list[InlinePool]()

    def start() -> InlinePool:
        pools.append(InlinePool(settings, dies, workers))
        return pools[0]

    tally = batch.run(start, timeout=60, is_quiet=True)
    pool = pools[0] if pools else None
    return Run(pool.tasks if pool else [], dict(tally.counts), pool.alone if pool else [])


def rows(target: object, **options: object) -> dict[str, dict]:
    """Return the last row of each key in a report."""
    report = Report(open_store(Address(str(target), options)))
    columns = ["key", "etag", "target", "status", "error", "warning", "node", "ticket", "settings", "run"]
    return {row["key"]: row for table in report.tables(columns) for row in table.to_pylist()}


def outcome(key: str, status: Status = Status.DONE, **more: object) -> Outcome:
    return Outcome(key, more.pop("etag", "1"), status, **({"seconds": 1.0, "node": "here"} | more))
