"""Say what the service takes, from whom, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from mirl_sparse.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Bound what requests may take.

    Attributes:
        photo_bytes: Bytes of one photo.
        photo_pixels: Pixels of one photo.
        held_bytes: Bytes of all photos that were received and results that were not sent yet.
        waiting: Photos that wait for a worker.
        wait_seconds: Seconds of work that may lie ahead of a photo when it comes. This bounds the time of
            answers: the wait of a photo and its own work, instead of any multiple of it.
        transfer_seconds: Seconds in which a request must be read, and seconds in which an answer must be
            taken.
        work_seconds: Seconds that a photo may wait and be worked on.
        head_seconds: Seconds in which the head of a request must come.
        connections: Connections at a time.

    Raises:
        UserError: A limit is not above 0, or one photo may be larger than all together.
    """

    photo_bytes: int = 50_000_000
    photo_pixels: int = 50_000_000
    held_bytes: int = 250_000_000
    waiting: int = 16
    wait_seconds: float = 10
    transfer_seconds: float = 30
    work_seconds: float = 120
    head_seconds: float = 10
    connections: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UserError(f"{name} is {value}; expected more than 0")
        if self.photo_bytes > self.held_bytes:
            raise UserError(
                f"one photo may have {self.photo_bytes:,} bytes, all together {self.held_bytes:,};"
                " expected at least as many for all"
            )


@dataclass(frozen=True)
class Access:
    """Say who may use the service.

    Attributes:
        hosts: Names by which it may be addressed; None for any. They guard against pages that point a name
            of their own at this machine.
        origins: Other sites whose pages may use it, such as "https://photos.example".
    """

    hosts: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()
