"""List photos ahead of the workers, a bounded number of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Empty, Full, Queue

from mirl_sparse.batch.worker import Task

_AHEAD = 10_000
_LOOK_EVERY = 0.2  # seconds; how soon it ends when nobody takes tasks any more


class Feed:
    """Run through tasks in a thread, ahead of who takes them.

    Args:
        tasks: The tasks, as the listing brings them.
    """

    def __init__(self, tasks: Iterator[Task]) -> None:
        self._queue: Queue[Task] = Queue(_AHEAD)
        self._error: BaseException | None = None
        self._is_closed = False
        self._count = 0
        self._has_begun = threading.Event()
        self._thread = threading.Thread(target=self._fill, args=(tasks,), daemon=True)
        self._thread.start()

    def take(self) -> Task | None:
        """Return the next task, or None if there is none now."""
        try:
            return self._queue.get_nowait()
        except Empty:
            return None

    def has_any(self) -> bool:
        """Wait for the first task, and return whether there is one.

        Raises:
            Exception: What has ended the listing before.
        """
        self._has_begun.wait()
        return not self.is_over

    @property
    def is_over(self) -> bool:
        """Return whether all tasks were taken.

        Raises:
            Exception: What has ended the listing before.
        """
        if self._thread.is_alive() or not self._queue.empty():
            return False
        if self._error:
            raise self._error
        return True

    @property
    def total(self) -> int | None:
        """The number of tasks, or None while the listing goes on."""
        return None if self._thread.is_alive() else self._count

    def close(self) -> None:
        """End the listing."""
        self._is_closed = True

    def _fill(self, tasks: Iterator[Task]) -> None:
        try:
            for task in tasks:
                while not self._is_closed:
                    try:
                        self._queue.put(task, timeout=_LOOK_EVERY)
                        break
                    except Full:
                        continue
                if self._is_closed:
                    return
                self._count += 1
                self._has_begun.set()
        except BaseException as error:  # it is raised where the tasks are taken
            self._error = error
        finally:
            self._has_begun.set()
