"""Find the photos that a user's files, folders and globs name."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mirl_sparse.errors import UserError
from mirl_sparse.photos.formats import INSTALL, KNOWN_SUFFIXES, missing_plugin, readable_suffixes
from mirl_sparse.photos.photo import printable_path
from mirl_sparse.photos.reading import is_image


@dataclass(frozen=True)
class Source:
    """Name one photo to read.

    Attributes:
        path: Path of the file.
        below: Path of its result below an output folder, with the suffix of the source.
    """

    path: Path
    below: Path


def find_sources(inputs: Sequence[str], output: Path | None, left_out: Counter[str]) -> Iterator[Source]:
    """Yield the photos that the inputs name, in their order, each of them once.

    Folders are listed one by one, so that one of millions of files takes little memory.

    Args:
        inputs: Files, folders (searched to the bottom), and globs with `**`. Hidden files are ignored. Of
            other files in folders and globs, those with the suffix of a readable format are taken, and those
            without a suffix that hold an image.
        output: Where results go: what is in an output inside of an input folder is no photo to restore.
        left_out: Counts the files in folders and globs that are not taken, by their kind.

    Raises:
        UserError: An input is missing, names no image, or cannot be listed.
    """
    if not inputs:
        raise UserError("nothing to restore; give files, folders, globs, or - for standard input")
    seen: set[str] = set()
    for name in inputs:
        for source in _named_by(name, output, left_out):
            if len(inputs) > 1:  # `a.png *.png` names a.png twice
                place = os.path.abspath(source.path)
                if place in seen:
                    continue
                seen.add(place)
            yield source


def real_path(path: Path) -> Path:
    """Return the path behind all links; unlike Path.resolve, it accepts a loop of links."""
    return Path(os.path.realpath(path))


def _named_by(name: str, output: Path | None, left_out: Counter[str]) -> Iterator[Source]:
    path = Path(name)
    if os.path.isdir(name):  # unlike Path.is_dir, never raises: the name may be too long
        sources, fault = _in_folder(path, output, left_out), f"holds no image ({KNOWN_SUFFIXES})"
    elif os.path.exists(name):
        sources, fault = iter([Source(path, Path(path.name))]), ""
    elif glob.has_magic(name):
        sources, fault = _matching(name, output, left_out), f"matches no image ({KNOWN_SUFFIXES})"
    else:
        sources, fault = iter([]), "no such file or folder"
    first = next(sources, None)
    if first is None:
        raise UserError(f"{printable_path(name)}: {fault}")
    yield first
    yield from sources


def _in_folder(folder: Path, output: Path | None, left_out: Counter[str]) -> Iterator[Source]:
    for path in _walk(folder, _inside(folder, output)):
        if _is_taken(path, left_out):
            yield Source(path, path.relative_to(folder))


def _matching(pattern: str, output: Path | None, left_out: Counter[str]) -> Iterator[Source]:
    path = Path(pattern)
    root = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    asked = path.suffix.lower()  # `*.xyz` does ask for such files
    results = _inside(root, output)
    for file in map(Path, sorted(glob.glob(pattern, recursive=True))):
        if not os.path.isfile(file) or (results and real_path(file).is_relative_to(results)):
            continue
        if (asked and file.suffix.lower() == asked) or _is_taken(file, left_out):
            yield Source(file, Path(file.name))


def _is_taken(path: Path, left_out: Counter[str]) -> bool:
    """Return whether a file in a folder is a photo to restore; if not, count it."""
    suffix = path.suffix.lower()
    if suffix in readable_suffixes() or (not suffix and is_image(path)):
        return True
    kind = suffix or "without a suffix"
    left_out[f"{kind} (to read them, {INSTALL})" if missing_plugin(suffix) else kind] += 1
    return False


def _walk(folder: Path, results: Path | None) -> Iterator[Path]:
    """Yield the files of a folder and those below, in order, without hidden ones and ``results``."""

    def fail(error: OSError) -> NoReturn:  # os.walk would ignore what it cannot list
        raise UserError(f"{printable_path(error.filename)}: cannot be listed ({error.strerror})")

    for root, folders, files in os.walk(folder, onerror=fail):
        here = Path(root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if results:
            folders[:] = [name for name in folders if real_path(here / name) != results]
        for name in sorted(files):
            if not name.startswith(".") and not (results and real_path(here / name) == results):
                yield here / name


def _inside(root: Path, output: Path | None) -> Path | None:
    """Return the real path of an output inside of root; None for root itself, or a folder above it."""
    if output is None:
        return None
    out, inside = real_path(output), real_path(root)
    return out if out != inside and out.is_relative_to(inside) else None
