"""Decide where the result of each photo goes."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mirl_sparse.errors import UserError
from mirl_sparse.photos.formats import FORMATS, KNOWN_SUFFIXES
from mirl_sparse.photos.inputs import Source, find_sources, real_path
from mirl_sparse.photos.photo import printable_path

STANDARD_STREAM = "-"
BESIDE = "_restored"
_DEFAULT_SUFFIX = ".png"


@dataclass(frozen=True)
class Job:
    """Say where one photo comes from and where its result goes.

    Attributes:
        source: File of the photo; None for standard input.
        target: File of the result; None for standard output.
        format: Format of the result, one of the values of FORMATS.
    """

    source: Path | None
    target: Path | None
    format: str = "PNG"

    def __str__(self) -> str:
        return "standard input" if self.source is None else printable_path(self.source)


def list_jobs(
    inputs: Sequence[str],
    output: str | None,
    format: str | None = None,
    left_out: Counter[str] | None = None,
) -> list[Job]:
    """Return one job for every photo that the inputs name, in their order; nothing is read, written or made.

    Existing outputs are overwritten, inputs never are.

    Args:
        inputs: Files, folders (searched to the bottom, their tree is kept below the output), globs with `**`,
            or `-` alone for standard input. Hidden files are ignored. Files of an output inside of an input
            folder are no inputs, nor is NAME_restored beside NAME when there is no output.
        output: A file (for one photo), a folder, `-` for standard output, or None: beside each photo, as
            NAME_restored, and standard output for standard input.
        format: A suffix such as "png" for every result; by default each photo keeps its own, and an unknown
            one becomes PNG.
        left_out: Counts the files in folders and globs that are no readable images, by their kind: the
            suffix, and what would make them readable.

    Raises:
        UserError: In one line, if an input is missing or holds no image, if two photos would be written to
            one file or a photo over an input, if a suffix is unknown, or if `-` is asked for what it cannot
            do.
    """
    suffix = None if format is None else _suffix(format)
    if STANDARD_STREAM in inputs:
        return [_stream_job(inputs, output, suffix)]
    folder = None if output in (None, STANDARD_STREAM) else Path(str(output))
    sources = find_sources(inputs, folder, Counter() if left_out is None else left_out)
    if output is None:
        jobs = _jobs_beside(sources, suffix)
    elif output == STANDARD_STREAM:
        _expect_one(sources, "standard output")
        _expect_no_terminal()
        source = sources[0].path
        jobs = [Job(source, None, FORMATS[suffix or _own_suffix(source).lower()])]
    elif _names_file(output, suffix):
        _expect_one(sources, printable_path(output))
        jobs = [_job(sources[0].path, Path(output))]
    else:
        jobs = [
            _job(s.path, (Path(output) / s.below).with_suffix(suffix or _own_suffix(s.path))) for s in sources
        ]
    _refuse_clashes(jobs)
    return jobs


def file_identity(path: Path) -> tuple[int, int] | str:
    """Return a value that all names of one file share: links, and spellings where case does not count."""
    try:
        status = path.stat()
    except OSError:
        return str(real_path(path))
    return status.st_dev, status.st_ino


def _jobs_beside(sources: Sequence[Source], suffix: str | None) -> list[Job]:
    paths = [source.path for source in sources]
    stems = {path.with_suffix("") for path in paths}

    def is_result(path: Path) -> bool:  # of an earlier run, beside its source
        return path.stem.endswith(BESIDE) and path.parent / path.stem.removesuffix(BESIDE) in stems

    return [
        _job(path, path.with_name(path.stem + BESIDE + (suffix or _own_suffix(path))))
        for path in paths
        if not is_result(path)
    ]


def _stream_job(inputs: Sequence[str], output: str | None, suffix: str | None) -> Job:
    if len(inputs) > 1:
        raise UserError("- (standard input) goes alone; restore the other inputs in a second call")
    if output in (None, STANDARD_STREAM):
        _expect_no_terminal()
        return Job(None, None, FORMATS[suffix or _DEFAULT_SUFFIX])
    if not _names_file(str(output), suffix):
        raise UserError(
            f"{printable_path(str(output))}: standard input has no name; expected a file"
            f" ({KNOWN_SUFFIXES}) or - as output"
        )
    return _job(None, Path(str(output)))


def _job(source: Path | None, target: Path) -> Job:
    return Job(source, target, FORMATS[target.suffix.lower()])


def _own_suffix(path: Path) -> str:
    return path.suffix if path.suffix.lower() in FORMATS else _DEFAULT_SUFFIX


def _suffix(format: str) -> str:
    suffix = f".{format.lower().removeprefix('.')}"
    if suffix not in FORMATS:
        raise UserError(f"format {format!r} is unknown; expected one of {KNOWN_SUFFIXES}")
    return suffix


def _names_file(output: str, suffix: str | None) -> bool:
    """Return whether the output is one image, rather than a folder."""
    if os.path.isdir(output) or output.endswith(("/", os.sep)):
        return False
    name, output_suffix = printable_path(output), Path(output).suffix.lower()
    if output_suffix in FORMATS:
        if suffix is not None and FORMATS[output_suffix] != FORMATS[suffix]:
            raise UserError(f"{name}: is not named as the format {suffix[1:]}; change one of them")
        return True
    if output_suffix[1:].isalpha():  # more often a slip than a folder; v1.2 passes
        raise UserError(
            f"{name}: suffix {output_suffix!r} is unknown; expected one of {KNOWN_SUFFIXES},"
            " or / behind a folder"
        )
    if os.path.exists(output):
        raise UserError(f"{name}: is a file; expected a folder, or a file with a suffix ({KNOWN_SUFFIXES})")
    return False


def _expect_one(sources: Sequence[Source], output: str) -> None:
    if len(sources) > 1:
        raise UserError(
            f"{output}: holds one image, but {len(sources)} are given; expected a folder as output"
        )


def _expect_no_terminal() -> None:
    if sys.stdout.isatty():
        raise UserError("standard output is a terminal; redirect it or name an output file")


def _refuse_clashes(jobs: Sequence[Job]) -> None:
    inputs = {file_identity(job.source) for job in jobs if job.source is not None}
    taken: dict[tuple[int, int] | str, Job] = {}
    for job in jobs:
        if job.target is None:
            continue
        place = file_identity(job.target)
        if place in inputs:
            raise UserError(
                f"{printable_path(job.target)}: is an input, and inputs are never replaced; choose"
                " another output"
            )
        if place in taken:
            raise UserError(
                f"{taken[place]} and {job} would both be written to {printable_path(job.target)}; "
                "rename one, or give their folder as input to keep its tree"
            )
        taken[place] = job
