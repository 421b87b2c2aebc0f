"""Restore one photo: what a worker does in its thread."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from mirl_sparse.errors import UserError
from mirl_sparse.photos import ImageError, Manner, Photo, Restorer, read_photo, write_photo
from mirl_sparse.photos.photo import DeepPixels
from mirl_sparse.program import CompiledRestorer

_TRIAL_SIDE = 128


class StoppedError(Exception):
    """Report that the work was stopped: nobody waits for it."""


class UnrestoredError(Exception):
    """Report a photo that could not be restored here, for want of memory; the message is one line."""


class UnwritableError(Exception):
    """Report a result that does not fit its format; the message is one line."""


class Stop:
    """Tell a worker to stop; another thread may do it."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Stop the work as soon as it looks."""
        self._event.set()

    def check(self, done: float = 0) -> None:
        """Raise `StoppedError` if the work is to stop; it can be the progress function of the runtime."""
        if self._event.is_set():
            raise StoppedError


@dataclass(frozen=True)
class Order:
    """Say what is to be done with a photo.

    Attributes:
        data: The photo's file.
        name: Its name, for messages.
        format: Format of the result, one of the values of FORMATS.
        manner: How it is restored.
    """

    data: bytes
    name: str
    format: str
    manner: Manner


@dataclass(frozen=True)
class Result:
    """Hold a restored photo.

    Attributes:
        data: Its file.
        pixels: How many it has.
        notes: What the user should know of it, such as that it was restored in tiles.
    """

    data: bytes
    pixels: int
    notes: tuple[str, ...] = ()


def carry_out(order: Order, restorer: Restorer, stop: Stop) -> Result:
    """Restore a photo as ``mirl-sparse restore`` does.

    Args:
        order: What is to be done.
        restorer: What restores it. Compiled tickets stop in the middle; others after the photo.
        stop: Stops the work.

    Raises:
        StoppedError: The work was stopped.
        ImageError: The photo cannot be read.
        UnrestoredError: It could not be restored.
        UnwritableError: The result does not fit its format.
    """
    with _noting() as notes:
        stop.check()
        photo = read_photo(BytesIO(order.data), order.name)
        stop.check()
        photo = photo.with_pixels(_restored(restorer, photo, order, stop))
        stop.check()
        if not order.manner.has_metadata:
            photo = photo.without_metadata()
        stream = BytesIO()
        try:
            write_photo(stream, photo, order.format, order.name)
        except ImageError as error:
            raise UnwritableError(str(error)) from error
    height, width = photo.pixels.shape[:2]
    return Result(stream.getvalue(), height * width, tuple(notes))


def try_out(restorer: Restorer) -> int:
    """Restore a small photo, so that the first request does not pay for what happens once.

    Returns:
        Its number of pixels.
    """
    restorer.restore(np.zeros((_TRIAL_SIDE, _TRIAL_SIDE, 3), np.uint8), 1.0)
    return _TRIAL_SIDE**2


def _restored(restorer: Restorer, photo: Photo, order: Order, stop: Stop) -> DeepPixels:
    try:
        if isinstance(restorer, CompiledRestorer):
            return restorer.restore(photo.pixels, order.manner.strength, stop.check)
        return restorer.restore(photo.pixels, order.manner.strength)
    except (UserError, MemoryError, RuntimeError) as error:  # the last is PyTorch's, where memory runs out
        height, width = photo.pixels.shape[:2]
        fault = " ".join(str(error).split()) or type(error).__name__
        raise UnrestoredError(
            f"{order.name}: {width}x{height} pixels could not be restored ({fault})"
        ) from error


_thread = threading.local()  # .notes: where the thread's warnings go


@contextmanager
def _noting() -> Iterator[list[str]]:
    """Yield a list that gets the warnings of this thread, while `thread_warnings` is in force."""
    _thread.notes = []
    try:
        yield _thread.notes
    finally:
        del _thread.notes


@contextmanager
def thread_warnings() -> Iterator[None]:
    """Give each worker its own warnings; `warnings.catch_warnings` would mix those of all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # the others remember each text, for ever
        warnings.filterwarnings("ignore", module=r"PIL\.")
        show = warnings.showwarning

        def note(message: Warning | str, *rest: object) -> None:
            notes = getattr(_thread, "notes", None)
            if notes is None:
                show(message, *rest)  # type: ignore[arg-type]
            else:
                notes.append(str(message))

        warnings.showwarning = note  # type: ignore[assignment]
        yield
