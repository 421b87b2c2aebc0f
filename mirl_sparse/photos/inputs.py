"""Find the photos that a user's files, folders and globs name."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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


def find_sources(inputs: Sequence[str], output: Path | None, left_out: Counter[str]) -> list[Source]:
    """Return the photos that the inputs name, in their order, each of them once.

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
    return list(_unique(source for name in inputs for source in _named_by(name, output, left_out)))


def real_path(path: Path) -> Path:
    """Return the path behind all links; unlike Path.resolve, it accepts a loop of links."""
    return Path(os.path.realpath(path))


def _named_by(name: str, output: Path | None, left_out: Counter[str]) -> list[Source]:
    path = Path(name)
    if os.path.isdir(name):  # unlike Path.is_dir, never raises: the name may be too long
        sources, fault = _in_folder(path, output, left_out), f"holds no image ({KNOWN_SUFFIXES})"
    elif os.path.exists(name):
        sources, fault = [Source(path, Path(path.name))], ""
    elif glob.has_magic(name):
        sources, fault = _matching(name, output, left_out), f"matches no image ({KNOWN_SUFFIXES})"
    else:
        sources, fault = [], "no such file or folder"
    if not sources:
        raise UserError(f"{printable_path(name)}: {fault}")
    return sources


def _in_folder(folder: Path, output: Path | None, left_out: Counter[str]) -> list[Source]:
    paths = (path for path in _walk(folder) if not _is_output(path, folder, output))
    return [Source(path, path.relative_to(folder)) for path in paths if _is_taken(path, left_out)]


def _matching(pattern: str, output: Path | None, left_out: Counter[str]) -> list[Source]:
    path = Path(pattern)
    root = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    asked = path.suffix.lower()  # `*.xyz` does ask for such files
    matches = (Path(match) for match in sorted(glob.glob(pattern, recursive=True)))
    files = (match for match in matches if os.path.isfile(match) and not _is_output(match, root, output))
    return [
        Source(file, Path(file.name))
        for file in files
        if (asked and file.suffix.lower() == asked) or _is_taken(file, left_out)
    ]


def _is_taken(path: Path, left_out: Counter[str]) -> bool:
    """Return whether a file in a folder is a photo to restore; if not, count it."""
    suffix = path.suffix.lower()
    if suffix in readable_suffixes() or (not suffix and is_image(path)):
        return True
    kind = suffix or "without a suffix"
    left_out[f"{kind} (to read them, {INSTALL})" if missing_plugin(suffix) else kind] += 1
    return False


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> NoReturn:  # os.walk would ignore what it cannot list
        raise UserError(f"{printable_path(error.filename)}: cannot be listed ({error.strerror})")

    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _is_output(path: Path, root: Path, output: Path | None) -> bool:
    """Return whether the path is in an output inside of root; root itself, or a folder above it, is none."""
    if output is None:
        return False
    out, inside = real_path(output), real_path(root)
    return out != inside and out.is_relative_to(inside) and real_path(path).is_relative_to(out)


def _unique(sources: Iterable[Source]) -> Iterator[Source]:
    """Yield each file once: `a.png *.png` names a.png twice."""
    seen: set[str] = set()
    for source in sources:
        if (place := os.path.abspath(source.path)) not in seen:
            seen.add(place)
            yield source
