"""Give photos to workers, one at a time each, and see what becomes of workers that die or hang.

The engines differ in how a worker is started, asked and ended; that is a `Pool`. What happens then is decided
here, once for all of them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mirl_sparse.batch.report import Outcome, Status
from mirl_sparse.batch.worker import Task
from mirl_sparse.errors import UserError
from mirl_sparse.photos.photo import printable_path

_TICK = 0.2  # seconds; how often time limits and signals are looked at
_TRIES = 2  # of a photo whose worker dies
_STARTS = 3  # in a row that a worker may die before it is ready
_W = TypeVar("_W")


@dataclass(frozen=True)
class Ready:
    """Report that a worker has loaded the ticket."""


@dataclass(frozen=True)
class Death:
    """Report that a worker is gone.

    Attributes:
        reason: How it ended.
        is_blameless: Whether its machine was lost, so that no photo is to blame.
    """

    reason: str
    is_blameless: bool = False


Event = Ready | Death | Outcome


class Queue(Protocol):
    """Give tasks in the order of the listing."""

    def take(self) -> Task | None:
        """Return the next task, or None if there is none now."""

    @property
    def is_over(self) -> bool:
        """Return whether no more tasks will come."""


class Pool(ABC, Generic[_W]):
    """Hold workers and what each is doing.

    Attributes:
        may_drain: Whether all others may wait while a photo is tried alone, as they share its memory.
        idle: Workers that wait for a photo.
        busy: What each other one restores, and since when (`time.monotonic`).
    """

    may_drain = False

    def __init__(self) -> None:
        self.idle: list[_W] = []
        self.busy: dict[_W, tuple[Task, float]] = {}
        self.starting: set[_W] = set()

    def __len__(self) -> int:
        return len(self.idle) + len(self.busy)

    def give(self, task: Task) -> None:
        """Let an idle worker restore a photo."""
        worker = self.idle.pop()
        self.busy[worker] = task, time.monotonic()
        self.send(worker, task)

    def add(self) -> None:
        """Start a worker."""
        self.starting.add(self.launch())

    def replace(self, worker: _W) -> Task | None:
        """End a worker, start another one, and return the photo that it had."""
        task = self.forget(worker)
        self.end(worker)
        self.add()
        return task

    def forget(self, worker: _W) -> Task | None:
        """Take a worker off the books and return the photo that it had."""
        self.starting.discard(worker)
        if worker in self.idle:
            self.idle.remove(worker)
        task, _ = self.busy.pop(worker, (None, 0.0))
        return task

    @abstractmethod
    def launch(self) -> _W:
        """Start a worker and return it before it is ready."""

    @abstractmethod
    def send(self, worker: _W, task: Task) -> None:
        """Tell a worker to restore a photo; one that is dead reports that by an event."""

    @abstractmethod
    def end(self, worker: _W) -> None:
        """Kill a worker, if it lives."""

    @abstractmethod
    def events(self, seconds: float) -> list[tuple[_W, Event]]:
        """Return what workers report, after so long at the latest."""

    @abstractmethod
    def close(self) -> None:
        """Kill all workers."""

    def look_around(self) -> None:
        """Start more workers where there is more room than there was; most pools do not grow."""
        return


class Dispatcher(Generic[_W]):
    """Have all photos of a queue restored by the workers of a pool.

    A photo whose worker dies is tried once more: alone, where workers share a machine. If the worker dies
    again, the photo has failed. One that takes too long has failed at once, and its worker is replaced.

    Args:
        pool: The workers.
        queue: The photos.
        timeout: Seconds that one photo may take.
    """

    def __init__(self, pool: Pool[_W], queue: Queue, timeout: float) -> None:
        self._pool, self._queue, self._timeout = pool, queue, timeout
        self._again: deque[Task] = deque()
        self._deaths: Counter[str] = Counter()
        self._failed_starts = 0
        self._deadline: float | None = None
        self._next_look = 0.0

    def stop(self, seconds: float) -> None:
        """Give out no more photos, and wait so long for those that are being restored."""
        self._deadline = time.monotonic() + seconds

    def run(self) -> Iterator[Outcome | None]:
        """Yield what becomes of each photo, and None whenever nothing happened for a moment.

        Raises:
            UserError: No worker can start.
        """
        while not self._is_over():
            self._give()
            events = self._pool.events(_TICK)
            for worker, event in events:
                if outcome := self._handle(worker, event):
                    yield outcome
            yield from self._late()
            self._pool.look_around()
            if not events:
                yield None

    def _is_over(self) -> bool:
        if self._deadline is not None:
            return not self._pool.busy or time.monotonic() > self._deadline
        return not (self._pool.busy or self._again) and self._queue.is_over

    def _give(self) -> None:
        """Give photos to idle workers; a photo that is tried again goes first, if need be alone."""
        pool = self._pool
        while pool.idle and self._deadline is None:
            if self._again:
                if pool.may_drain and pool.busy:
                    return
                pool.give(self._again.popleft())
                if pool.may_drain:
                    return
            elif self._is_alone() or (task := self._queue.take()) is None:
                return
            else:
                pool.give(task)

    def _is_alone(self) -> bool:
        """Return whether a photo is being tried alone."""
        return self._pool.may_drain and any(task.key in self._deaths for task, _ in self._pool.busy.values())

    def _handle(self, worker: _W, event: Event) -> Outcome | None:
        pool = self._pool
        if isinstance(event, Ready):
            self._failed_starts = 0
            pool.starting.discard(worker)
            pool.idle.append(worker)
            return None
        if isinstance(event, Outcome):
            pool.busy.pop(worker)
            pool.idle.append(worker)
            self._deaths.pop(event.key, None)
            return event
        if worker in pool.starting and not event.is_blameless:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS * (len(pool) + len(pool.starting)):
                raise UserError(f"workers end before they are ready ({event.reason})")
        task = pool.replace(worker)
        return None if task is None else self._try_again(task, event)

    def _try_again(self, task: Task, death: Death) -> Outcome | None:
        if not death.is_blameless:
            self._deaths[task.key] += 1
            if self._deaths[task.key] >= _TRIES:
                del self._deaths[task.key]
                return _failed(task, f"its worker died, and so did the next one ({death.reason})")
        self._again.append(task)
        return None

    def _late(self) -> Iterator[Outcome]:
        now = time.monotonic()
        if now < self._next_look:  # there may be thousands of workers
            return
        self._next_look = now + _TICK
        late = [(w, task) for w, (task, start) in self._pool.busy.items() if now - start > self._timeout]
        for worker, task in late:
            self._pool.replace(worker)
            self._deaths.pop(task.key, None)
            yield _failed(task, f"took longer than {self._timeout:g} s (--timeout)", self._timeout)


def _failed(task: Task, reason: str, seconds: float = 0.0) -> Outcome:
    error = f"{printable_path(task.key)}: {reason}"
    return Outcome(task.key, task.etag, Status.FAILED, error=error, seconds=seconds)
