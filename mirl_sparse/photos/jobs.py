"""Decide where the result of each photo goes."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mirl_sparse.errors import UserError
from mirl_sparse.photos.formats import FORMATS, KNOWN_SUFFIXES
from mirl_sparse.photos.inputs import Source, find_sources, may_repeat, real_path
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


class Jobs:
    """List the jobs of a call one by one, as often as it is asked, so that millions take little memory.

    Nothing is read, written or made. Existing outputs are overwritten, inputs never are.

    Args:
        inputs: Files, folders (searched to the bottom, their tree is kept below the output), globs with `**`,
            or `-` alone for standard input. Hidden files are ignored. Files of an output inside of an input
            folder are no inputs, nor is NAME_restored beside NAME when there is no output.
        output: A file (for one photo), a folder, `-` for standard output, or None: beside each photo, as
            NAME_restored, and standard output for standard input.
        format: A suffix such as "png" for every result; by default each photo keeps its own, and an unknown
            one becomes PNG.

    Attributes:
        left_out: Number of what is left out in folders and globs, by its kind: of files that are no readable
            images the suffix, and what would make them readable.

    Raises:
        UserError: In one line, if an input is missing or holds no image, if two photos would be written to
            one file or a photo over an input, if a suffix is unknown, or if `-` is asked for what it cannot
            do.
    """

    def __init__(self, inputs: Sequence[str], output: str | None, format: str | None = None) -> None:
        self._inputs, self._output = inputs, output
        self._suffix = None if format is None else known_suffix(format)
        self.left_out: Counter[str] = Counter()
        self._is_counted = False  # what is left out
        self._is_result: Callable[[Path], bool] = lambda path: False
        if STANDARD_STREAM in inputs:
            self._count = sum(1 for _ in self)
            return
        self._targets = self._find_targets()
        if output is None:
            self._is_result = self._earlier_results()
        self._count = _refuse_clashes(self)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        if STANDARD_STREAM in self._inputs:
            yield _stream_job(self._inputs, self._output, self._suffix)
            return
        results: set[str] = set()  # beside the photos of one input, perhaps below another input
        for source in self._sources(Counter() if self._is_counted else self.left_out):
            if self._is_result(source.path) or os.path.abspath(source.path) in results:
                continue
            target = self._targets(source)
            if target and self._output is None and may_repeat(self._inputs):
                results.add(os.path.abspath(target))
            suffix = self._suffix or _own_suffix(source.path)
            yield Job(source.path, target, FORMATS[(target.suffix if target else suffix).lower()])
        self._is_counted = True

    def _sources(self, left_out: Counter[str] | None = None) -> Iterator[Source]:
        folder = None if self._output in (None, STANDARD_STREAM) else Path(str(self._output))
        return find_sources(self._inputs, folder, Counter() if left_out is None else left_out)

    def _find_targets(self) -> Callable[[Source], Path | None]:
        """Return the function that names the result of a photo."""
        output, suffix = self._output, self._suffix
        if output is None:
            return lambda s: s.path.with_name(s.path.stem + BESIDE + (suffix or _own_suffix(s.path)))
        if output == STANDARD_STREAM:
            self._expect_one("standard output")
            _expect_no_terminal()
            return lambda s: None
        if _names_file(output, suffix):
            self._expect_one(printable_path(output))
            return lambda s: Path(output)
        return lambda s: (Path(output) / s.below).with_suffix(suffix or _own_suffix(s.path))

    def _expect_one(self, output: str) -> None:
        count = sum(1 for _ in self._sources())
        if count > 1:
            raise UserError(f"{output}: holds one image, but {count} are given; expected a folder as output")

    def _earlier_results(self) -> Callable[[Path], bool]:
        """Return the function that tells whether a photo is the result of another one, beside that."""

        def photo_of(path: Path) -> Path:
            return path.parent / path.stem.removesuffix(BESIDE)

        results = {photo_of(s.path) for s in self._sources() if s.path.stem.endswith(BESIDE)}
        photos = {stem for s in self._sources() if (stem := s.path.with_suffix("")) in results}
        return lambda path: path.stem.endswith(BESIDE) and photo_of(path) in photos


def file_identity(path: Path) -> tuple[int, int] | str:
    """Return a value that all names of one file share: links, and spellings where case does not count."""
    try:
        status = path.stat()
    except OSError:
        return str(real_path(path))
    return status.st_dev, status.st_ino


def _stream_job(inputs: Sequence[str], output: str | None, suffix: str | None) -> Job:
    if len(inputs) > 1:
        raise UserError("- (standard input) goes alone; restore the other inputs in a second call")
    if sys.stdin is None:
        raise UserError("standard input is closed; redirect it or name a file")
    if output in (None, STANDARD_STREAM):
        _expect_no_terminal()
        return Job(None, None, FORMATS[suffix or _DEFAULT_SUFFIX])
    if not _names_file(str(output), suffix):
        raise UserError(
            f"{printable_path(str(output))}: standard input has no name; expected a file"
            f" ({KNOWN_SUFFIXES}) or - as output"
        )
    target = Path(str(output))
    return Job(None, target, FORMATS[target.suffix.lower()])


def _own_suffix(path: Path) -> str:
    return path.suffix if path.suffix.lower() in FORMATS else _DEFAULT_SUFFIX


def known_suffix(format: str) -> str:
    """Return the suffix, with its dot, of a format that a user names by one.

    Raises:
        UserError: Nothing is written in that format.
    """
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
        kind = "a file" if os.path.isfile(output) else "no folder"
        raise UserError(f"{name}: is {kind}; expected a folder, or a file with a suffix ({KNOWN_SUFFIXES})")
    return False


def _expect_no_terminal() -> None:
    if sys.stdout is None:
        raise UserError("standard output is closed; redirect it or name an output file")
    if sys.stdout.isatty():
        raise UserError("standard output is a terminal; redirect it or name an output file")


def _refuse_clashes(jobs: Iterable[Job]) -> int:
    """Refuse two photos that would be written to one file, and a result over an input; return their number.

    Args:
        jobs: They are listed up to three times. Hashes of files are remembered, not files: there may be
            millions.
    """
    count, taken, replaced = 0, set[int](), set[int]()
    clash: Job | None = None
    real_parent = cache(real_path)

    def place(target: Path) -> tuple[int, int] | str:
        try:
            status = target.stat()
        except OSError:
            return str(real_parent(target.parent) / target.name)
        replaced.add(hash((status.st_dev, status.st_ino)))
        return status.st_dev, status.st_ino

    for job in jobs:
        count += 1
        if job.target is None:
            continue
        at = hash(place(job.target))
        if at in taken:
            clash = clash or job
        taken.add(at)
    if replaced:
        for job in jobs:
            if job.source is not None and hash(source := file_identity(job.source)) in replaced:
                _refuse_to_replace(jobs, source)
    if clash and clash.target:
        first = next(job for job in jobs if job.target and place(job.target) == place(clash.target))
        raise UserError(
            f"{first} and {clash} would both be written to {printable_path(clash.target)}; "
            "rename one, or give their folder as input to keep its tree"
        )
    return count


def _refuse_to_replace(jobs: Iterable[Job], source: tuple[int, int] | str) -> None:
    """Refuse jobs of which one would be written over an input of this identity."""
    for job in jobs:
        if job.target and file_identity(job.target) == source:
            raise UserError(
                f"{printable_path(job.target)}: is an input, and inputs are never replaced; choose"
                " another output"
            )
