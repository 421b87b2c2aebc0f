"""Bound the bytes of photos and results that are in memory."""

from __future__ import annotations

from http import HTTPStatus

from mirl_sparse.service.refusals import Refusal

_RETRY_SECONDS = 1


class HeldBytes:
    """Count the bytes that all requests hold.

    Args:
        limit: How many there may be.

    Attributes:
        count: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.count = limit, 0


class Hold:
    """Hold bytes for one request.

    Args:
        held: Where they are counted.
    """

    def __init__(self, held: HeldBytes) -> None:
        self._held, self._count = held, 0

    def add(self, count: int) -> None:
        """Hold more bytes of a photo that comes in.

        Raises:
            Refusal: There is no room for them.
        """
        if self._held.count + count > self._held.limit:
            raise Refusal(
                HTTPStatus.TOO_MANY_REQUESTS, "too many photos are in work; try again later", _RETRY_SECONDS
            )
        self._add(count)

    def exchange(self, count: int) -> None:
        """Hold the bytes of the result in place of the photo's; a result is never refused."""
        self.release()
        self._add(count)

    def release(self) -> None:
        """Hold nothing any more."""
        self._add(-self._count)

    def _add(self, count: int) -> None:
        self._held.count += count
        self._count += count
