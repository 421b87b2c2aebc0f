"""Restoring many photos: which files are meant, where each result goes, and the loop over them."""

from __future__ import annotations

import glob
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from mirl_sparse.errors import UserError
from mirl_sparse.photos.images import FORMATS, IMAGE_SUFFIXES, ImageError, read_photo, shown, write_photo

STANDARD_STREAM = "-"
BESIDE = "_restored"
_KNOWN = ", ".join(sorted(FORMATS))


class Restorer(Protocol):
    """What turns a bad photo into a better one."""

    def restore(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB uint8 (H, W, 3) in and out, of any size from 1x1."""


@dataclass(frozen=True)
class Job:
    """One photo: where it comes from and where it goes."""

    source: Path | None  # None: standard input
    target: Path | None  # None: standard output
    format: str = "PNG"  # one of the values of FORMATS

    def __str__(self) -> str:
        return "standard input" if self.source is None else shown(self.source)


@dataclass(frozen=True)
class _Found:
    path: Path
    below: Path  # where it goes below the output folder, its suffix not yet decided


def plan(inputs: Sequence[str], output: str | None, format: str | None = None) -> list[Job]:
    """One job for every photo that the inputs name, in their order; nothing is read, written or made.

    inputs: files, folders (searched to the bottom, their tree is kept below the output), globs with `**`, or `-`
        alone for standard input. Hidden files are not looked at, and in folders and globs only known suffixes count.
    output: a file (for one photo), a folder, `-` for standard output, or None: beside each photo, as NAME_restored,
        and standard output for standard input. What lies in an output inside of an input folder is no input, nor is
        NAME_restored beside NAME when there is no output. An existing output is replaced, an input never.
    format: a suffix such as "png" for every result; by default each photo keeps its own, and an unknown one becomes PNG.

    Raises UserError, in one line, if an input is missing or holds no image, if two photos would be written to one
    file or a photo over an input, if a suffix is unknown, or if `-` is asked for what it cannot do.
    """
    suffix = None if format is None else _suffix(format)
    if STANDARD_STREAM in inputs:
        return [_stream_job(inputs, output, suffix)]
    found = list(_unique(_find(inputs, None if output in (None, STANDARD_STREAM) else Path(str(output)))))
    if output is None:
        jobs = _beside(found, suffix)
    elif output == STANDARD_STREAM:
        _expect_one(found, "standard output")
        _expect_no_terminal()
        jobs = [Job(found[0].path, None, FORMATS[suffix or _kept(found[0].path)])]
    elif _names_file(output, suffix):
        _expect_one(found, shown(output))
        jobs = [_job(found[0].path, Path(output))]
    else:
        jobs = [_job(f.path, (Path(output) / f.below).with_suffix(suffix or _kept(f.path))) for f in found]
    _refuse_clashes(jobs)
    return jobs


def run(
    jobs: Iterable[Job], restorer: Restorer, on_progress: Callable[[Job, UserError | None, float], None]
) -> int:
    """Restore each photo and write it, whole or not at all; a failure does not stop the rest.

    After each job on_progress gets it, its error (one line) or None, and the seconds that it took. Returns the
    number of failures. Errors that are neither a UserError nor a failure of the restorer to run (RuntimeError,
    MemoryError) are bugs and pass through.
    """
    failures = 0
    written: set[tuple[int, int] | str] = set()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module=r"PIL\."
        )  # "could be decompression bomb" would break the progress bar
        for job in jobs:
            start = time.perf_counter()
            error: UserError | None = None
            try:
                if job.target and _identity(job.target) in written:  # where case does not count
                    raise UserError(
                        f"{job}: would be written over the result of another photo, {shown(job.target)}; rename one"
                    )
                _restore(job, restorer)
                if job.target:
                    written.add(_identity(job.target))
            except UserError as problem:
                error = problem
                failures += 1
            on_progress(job, error, time.perf_counter() - start)
    return failures


def _restore(job: Job, restorer: Restorer) -> None:
    photo = read_photo(sys.stdin.buffer if job.source is None else job.source)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pixels = restorer.restore(photo.pixels)
    except (
        UserError,
        MemoryError,
        RuntimeError,
    ) as error:  # a photo too large for the device must not end the run
        height, width = photo.pixels.shape[:2]
        reason = str(error) or type(error).__name__
        raise ImageError(f"{job}: {width}x{height} pixels could not be restored ({reason})") from error
    for warning in caught:  # of each photo, by its name: the same words may be about the next one too
        warnings.warn(f"{job}: {warning.message}", warning.category, stacklevel=2)
    write_photo(
        sys.stdout.buffer if job.target is None else job.target, replace(photo, pixels=pixels), job.format
    )


def _find(inputs: Sequence[str], output: Path | None) -> Iterator[_Found]:
    if not inputs:
        raise UserError("nothing to restore; give files, folders, globs, or - for standard input")
    for given in inputs:
        path = Path(given)
        if os.path.isdir(given):  # unlike Path.is_dir, never raises: the name may be too long
            inside = [p for p in _walk(path) if not _is_output(p, path, output)]
            found = [_Found(p, p.relative_to(path)) for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
            what = f"holds no image ({_KNOWN})"
        elif os.path.exists(given):
            found, what = [_Found(path, Path(path.name))], ""
        elif glob.has_magic(given):
            root = _glob_root(path)
            suffixes = IMAGE_SUFFIXES | {path.suffix.lower() or ".png"}  # `*.gif` does ask for GIF files
            matches = (Path(match) for match in sorted(glob.glob(given, recursive=True)))
            files = [p for p in matches if p.suffix.lower() in suffixes and os.path.isfile(p)]
            found = [_Found(p, Path(p.name)) for p in files if not _is_output(p, root, output)]
            what = f"matches no image ({_KNOWN})"
        else:
            found, what = [], "no such file or folder"
        if not found:
            raise UserError(f"{shown(given)}: {what}")
        yield from found


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> NoReturn:  # os.walk would leave out what it cannot list
        raise UserError(f"{shown(error.filename)}: cannot be listed ({error.strerror})")

    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _glob_root(pattern: Path) -> Path:
    return next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))


def _is_output(path: Path, root: Path, output: Path | None) -> bool:
    """Does the path belong to an output inside of root? (An output that is root or above it shuts nothing out.)"""
    if output is None:
        return False
    out, inside = _real(output), _real(root)
    return out != inside and out.is_relative_to(inside) and _real(path).is_relative_to(out)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises on a loop of links


def _unique(found: Iterable[_Found]) -> Iterator[_Found]:
    """`a.png *.png` names a.png twice, and means it once."""
    seen: set[str] = set()
    for item in found:
        if (place := os.path.abspath(item.path)) not in seen:
            seen.add(place)
            yield item


def _beside(found: Sequence[_Found], suffix: str | None) -> list[Job]:
    paths = [item.path for item in found]
    stems = {path.with_suffix("") for path in paths}

    def earlier(path: Path) -> bool:  # the result of an earlier run, beside its source
        return path.stem.endswith(BESIDE) and path.parent / path.stem.removesuffix(BESIDE) in stems

    return [_job(p, p.with_name(p.stem + BESIDE + (suffix or _kept(p)))) for p in paths if not earlier(p)]


def _stream_job(inputs: Sequence[str], output: str | None, suffix: str | None) -> Job:
    if len(inputs) > 1:
        raise UserError("- (standard input) goes alone; restore the other inputs in a second call")
    if output in (None, STANDARD_STREAM):
        _expect_no_terminal()
        return Job(None, None, FORMATS[suffix or ".png"])
    if not _names_file(str(output), suffix):
        raise UserError(
            f"{shown(str(output))}: standard input has no name; expected a file ({_KNOWN}) or - as output"
        )
    return _job(None, Path(str(output)))


def _job(source: Path | None, target: Path) -> Job:
    return Job(source, target, FORMATS[target.suffix.lower()])


def _kept(path: Path) -> str:
    return path.suffix if path.suffix.lower() in FORMATS else ".png"


def _suffix(format: str) -> str:
    suffix = f".{format.lower().removeprefix('.')}"
    if suffix not in FORMATS:
        raise UserError(f"format {format!r} is unknown; expected one of {_KNOWN}")
    return suffix


def _names_file(output: str, suffix: str | None) -> bool:
    """Is the output one image, rather than a folder?"""
    path = Path(output)
    if os.path.isdir(output) or output.endswith(("/", os.sep)):
        return False
    own = path.suffix.lower()
    if own in FORMATS:
        if suffix is not None and FORMATS[own] != FORMATS[suffix]:
            raise UserError(f"{shown(output)}: is not named as the format {suffix[1:]}; change one of them")
        return True
    if own[1:].isalpha():  # more often a slip than a folder; v1.2 passes
        raise UserError(
            f"{shown(output)}: suffix {own!r} is unknown; expected one of {_KNOWN}, or / behind a folder"
        )
    if os.path.exists(output):
        raise UserError(f"{shown(output)}: is a file; expected a folder, or a file with a suffix ({_KNOWN})")
    return False


def _expect_one(found: Sequence[_Found], output: str) -> None:
    if len(found) > 1:
        raise UserError(f"{output}: holds one image, but {len(found)} are given; expected a folder as output")


def _expect_no_terminal() -> None:
    if sys.stdout.isatty():
        raise UserError("standard output is a terminal; redirect it or name an output file")


def _refuse_clashes(jobs: Sequence[Job]) -> None:
    inputs = {_identity(job.source): job.source for job in jobs if job.source is not None}
    taken: dict[tuple[int, int] | str, Job] = {}
    for job in jobs:
        if job.target is None:
            continue
        place = _identity(job.target)
        if place in inputs:
            raise UserError(
                f"{shown(job.target)}: is an input, and inputs are never replaced; choose another output"
            )
        if place in taken:
            raise UserError(
                f"{taken[place]} and {job} would both be written to {shown(job.target)}; "
                "rename one, or give their folder as input to keep its tree"
            )
        taken[place] = job


def _identity(path: Path) -> tuple[int, int] | str:
    """The same for all names of one file: links, and spellings where case does not count."""
    try:
        status = path.stat()
    except OSError:
        return str(_real(path))
    return status.st_dev, status.st_ino
