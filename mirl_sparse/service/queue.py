"""Let photos wait for a worker, no longer than answers in time allow.

A photo is taken if the work ahead of it takes no more than some seconds, by the pixels that wait and the
pace of the latest work. So at any load an accepted photo waits about that long at most, and when there is
more to do than can be done, nearly that long at least: answers take alike long, and the rest is refused at
once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

from mirl_sparse.photos import Restorer
from mirl_sparse.service.limits import Limits
from mirl_sparse.service.refusals import Refusal
from mirl_sparse.service.work import Order, Result, Stop, StoppedError, carry_out

_MEMORY = 0.9  # share of the earlier work in the pace that each new photo leaves


@dataclass(eq=False)
class _Place:
    """Hold a photo that waits or is worked on."""

    order: Order
    pixels: int
    result: asyncio.Future[Result]
    stop: Stop = field(default_factory=Stop)
    start: float = 0


class _Pace:
    """Remember how long a pixel takes.

    Args:
        pixels: Pixels of a first measurement.
        seconds: What they took.
    """

    def __init__(self, pixels: int, seconds: float) -> None:
        self._pixels, self._seconds = float(pixels), seconds

    def add(self, pixels: int, seconds: float) -> None:
        """Learn from one more photo."""
        self._pixels = _MEMORY * self._pixels + pixels
        self._seconds = _MEMORY * self._seconds + seconds

    def seconds(self, pixels: int) -> float:
        """Return how long so many pixels will take."""
        return pixels * self._seconds / self._pixels


class Queue:
    """Restore photos in threads, the first come first.

    It belongs to the event loop that calls `restore`.

    Args:
        restorers: One for each worker.
        limits: Bound what waits.
        pixels: Pixels of a first measurement.
        seconds: What they took.

    Attributes:
        is_open: Whether photos are taken.
        broken_off: Number of photos that were taken and not finished, because `close` had to stop them.
    """

    def __init__(self, restorers: Sequence[Restorer], limits: Limits, pixels: int, seconds: float) -> None:
        self._limits, self._pace = limits, _Pace(pixels, seconds)
        self._free = list(restorers)
        self._workers = len(restorers)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="restore")
        self._waiting: deque[_Place] = deque()
        self._running: set[_Place] = set()
        self.is_open, self.broken_off = True, 0

    @property
    def waiting(self) -> int:
        """Return how many photos wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Return how many photos are worked on, those among them that nobody waits for any more."""
        return len(self._running)

    def check(self) -> None:
        """Refuse a photo that would wait too long, before it is read.

        Raises:
            Refusal: There is too much to do, or the service stops.
        """
        if not self.is_open:
            raise _stopping()
        ahead = self._seconds_ahead()
        if len(self._waiting) >= self._limits.waiting or ahead > self._limits.wait_seconds:
            after = ahead - self._limits.wait_seconds if ahead > self._limits.wait_seconds else ahead / 2
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{len(self._waiting)} photos wait already, about {ahead:.1f} s of work; try again later",
                after,
            )

    async def restore(self, order: Order, pixels: int) -> Result:
        """Restore a photo, in its turn; cancelling this cancels the work.

        Args:
            order: What is to be done.
            pixels: Pixels of the photo.

        Raises:
            Refusal: There is too much to do, the service stops, or it took too long.
            ImageError: As `carry_out`, like the next two.
            UnrestoredError: It could not be restored.
            UnwritableError: The result does not fit its format.
        """
        self.check()
        place = _Place(order, pixels, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self._start_next()
        try:
            return await asyncio.wait_for(place.result, self._limits.work_seconds)
        except asyncio.TimeoutError:
            raise Refusal(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"the photo was not restored within {self._limits.work_seconds:g} s; send a smaller one",
            ) from None
        finally:
            place.stop.set()
            if place in self._waiting:
                self._waiting.remove(place)

    async def close(self, seconds: float) -> None:
        """Take no more photos, and finish the others; those that take longer are refused.

        Args:
            seconds: How long to wait.
        """
        self.is_open = False
        deadline = time.monotonic() + seconds
        while self._results() and time.monotonic() < deadline:
            left = max(0, deadline - time.monotonic())
            await asyncio.wait(self._results(), timeout=left)
        self.break_off()

    def break_off(self) -> None:
        """Refuse all photos that wait or are worked on."""
        self.is_open = False
        for result in self._results():
            self.broken_off += 1
            result.set_exception(_stopping())
        for place in (*self._waiting, *self._running):
            place.stop.set()
        self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _results(self) -> list[asyncio.Future[Result]]:
        """Return those that are awaited."""
        return [place.result for place in (*self._waiting, *self._running) if not place.result.done()]

    def _seconds_ahead(self) -> float:
        """Return how long a worker will take to begin a photo that comes now."""
        now, seconds = time.monotonic(), self._pace.seconds(sum(place.pixels for place in self._waiting))
        for place in self._running:
            seconds += max(0, self._pace.seconds(place.pixels) - (now - place.start))
        return seconds / self._workers

    def _start_next(self) -> None:
        while self._waiting and self._free:
            place, restorer = self._waiting.popleft(), self._free.pop()
            place.start = time.monotonic()
            self._running.add(place)
            work = asyncio.get_running_loop().run_in_executor(
                self._pool, carry_out, place.order, restorer, place.stop
            )
            work.add_done_callback(partial(self._finish, place, restorer))

    def _finish(self, place: _Place, restorer: Restorer, work: asyncio.Future[Result]) -> None:
        self._running.discard(place)
        self._free.append(restorer)
        error = StoppedError() if work.cancelled() else work.exception()
        if error is None:
            self._pace.add(place.pixels, time.monotonic() - place.start)
        if not place.result.done():
            if error is None:
                place.result.set_result(work.result())
            else:
                place.result.set_exception(error)
        self._start_next()


def _stopping() -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the service stops; try again later", retry_after=5)
