"""Restore many photos, one after the other."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

from mirl_sparse.errors import UserError
from mirl_sparse.photos.jobs import Job, file_identity
from mirl_sparse.photos.photo import DeepPixels, ImageError, Photo, printable_path
from mirl_sparse.photos.reading import read_photo
from mirl_sparse.photos.records import Records
from mirl_sparse.photos.writing import write_photo


class Restorer(Protocol):
    """Turn a bad photo into a better one."""

    def restore(self, image: DeepPixels, strength: float) -> DeepPixels:
        """Restore RGB (H, W, 3), uint8 or uint16, of any size from 1x1.

        Args:
            image: The photo.
            strength: Share of the restored photo in the result, 0 to 1.

        Returns:
            An array of the same type, and of the same shape or larger.
        """


@dataclass(frozen=True)
class Manner:
    """Say how photos are restored and written.

    Attributes:
        strength: Share of the restored photo in the result, 0 to 1.
        has_metadata: Whether EXIF, XMP, IPTC, resolution and text are kept.
    """

    strength: float = 1.0
    has_metadata: bool = True


_AS_USUAL = Manner()


def run_jobs(
    jobs: Iterable[Job],
    restorer: Restorer,
    on_progress: Callable[[Job, UserError | None, float], None],
    manner: Manner = _AS_USUAL,
    records: Records | None = None,
) -> int:
    """Restore each photo and write it, whole or not at all; a failure does not stop the rest.

    Args:
        jobs: What is restored.
        restorer: What restores it. Where it cannot (UserError, RuntimeError, MemoryError), the job fails, as
            it does where the memory is too small to read the photo or to write it; other exceptions are bugs
            and pass through.
        on_progress: Is called after each job with the job, its error (one line) or None, and the seconds that
            it took.
        manner: How photos are restored and written.
        records: Remembers the results.

    Returns:
        The number of failures.
    """
    failures = 0
    written: set[int] = set()  # hashes of the files of results
    with warnings.catch_warnings():
        # Pillow warns of large photos; `read_photo` refuses those that are too large.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for job in jobs:
            start = time.perf_counter()
            error: UserError | None = None
            try:
                with records.recording(job) if records else nullcontext():
                    _run_job(job, restorer, manner, written)
            except UserError as problem:
                error = problem
            except MemoryError:
                error = ImageError(f"{job}: cannot be read or written (not enough memory)")
            failures += error is not None
            on_progress(job, error, time.perf_counter() - start)
    return failures


def _run_job(job: Job, restorer: Restorer, manner: Manner, written: set[int]) -> None:
    """Restore one photo; ``written`` are hashes of earlier results' files, this one's is added to them."""
    if job.target and hash(file_identity(job.target)) in written:  # where case does not count
        raise UserError(
            f"{job}: would be written over the result of another photo,"
            f" {printable_path(job.target)}; rename one"
        )
    photo = read_photo(sys.stdin.buffer if job.source is None else job.source)
    photo = restore_photo(photo, str(job), restorer, manner)
    write_photo(sys.stdout.buffer if job.target is None else job.target, photo, job.format)
    if job.target:
        written.add(hash(file_identity(job.target)))


def restore_photo(photo: Photo, name: str, restorer: Restorer, manner: Manner) -> Photo:
    """Return a photo as it is to be written: restored, and with the metadata that is asked for.

    Args:
        photo: The photo as it was read.
        name: What messages and warnings call it.
        restorer: What restores it.
        manner: How it is restored.

    Raises:
        ImageError: The restorer cannot do it.
    """
    pixels = _restore(photo.pixels, name, lambda pixels: restorer.restore(pixels, manner.strength))
    photo = photo.with_pixels(pixels)
    return photo if manner.has_metadata else photo.without_metadata()


def _restore(pixels: DeepPixels, name: str, restore: Callable[[DeepPixels], DeepPixels]) -> DeepPixels:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            restored = restore(pixels)
    except (
        UserError,
        MemoryError,
        RuntimeError,
    ) as error:  # a photo too large for the device must not end the run
        height, width = pixels.shape[:2]
        fault = str(error) or type(error).__name__
        raise ImageError(f"{name}: {width}x{height} pixels could not be restored ({fault})") from error
    for warning in caught:  # of each photo, by its name: the same words may be about the next one too
        warnings.warn(f"{name}: {warning.message}", warning.category, stacklevel=2)
    return restored
