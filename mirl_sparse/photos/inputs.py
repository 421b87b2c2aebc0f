"""Find the photos that a user's files, folders and globs name."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
        inputs: Files, folders (searched to the bottom), and globs with `**`; folders that a glob matches are
            searched too. Hidden files are ignored. Of other files in folders and globs, those with the suffix
            of a readable format are taken, and those without a suffix that hold an image.
        output: Where results go: what is in an output inside of an input folder is no photo to restore.
        left_out: Counts what is not taken in folders and globs, by its kind: files that are no readable
            images, and folders that cannot be read or lie behind a link.

    Raises:
        UserError: An input is missing, names no image, or cannot be listed.
    """
    if not inputs:
        raise UserError("nothing to restore; give files, folders, globs, or - for standard input")
    seen: set[str] = set()
    for name in inputs:
        for source in _named_by(name, output, left_out):
            if may_repeat(inputs):
                place = os.path.abspath(source.path)
                if place in seen:
                    continue
                seen.add(place)
            yield source


def real_path(path: Path) -> Path:
    """Return the path behind all links; unlike Path.resolve, it accepts a loop of links."""
    return Path(os.path.realpath(path))


def may_repeat(inputs: Sequence[str]) -> bool:
    """Return whether a photo may be named twice: `a.png *.png` names a.png so, `**/b*` what is in b/b."""
    return len(inputs) > 1 or any(map(glob.has_magic, inputs))


def listed(left_out: Counter[str]) -> str:
    """Return in one phrase what was left out, the most frequent first."""
    return ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())


def _named_by(name: str, output: Path | None, left_out: Counter[str]) -> Iterator[Source]:
    path, others = Path(name), Counter[str]()
    if os.path.isdir(name):  # unlike Path.is_dir, never raises: the name may be too long
        _check_listable(path)
        sources, fault = _in_folder(path, output, others), f"holds no image ({KNOWN_SUFFIXES})"
    elif os.path.exists(name):
        sources, fault = iter([Source(path, Path(path.name))]), ""
    elif glob.has_magic(name):
        sources, fault = _matching(name, output, others), f"matches no image ({KNOWN_SUFFIXES})"
    else:
        sources, fault = iter([]), "no such file or folder"
    first = next(sources, None)
    if first is None:
        fault += f"; left out {listed(others)}" if others else ""
        raise UserError(f"{printable_path(name)}: {fault}")
    yield first
    yield from sources
    left_out.update(others)


def _check_listable(folder: Path) -> None:
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise UserError(f"{printable_path(folder)}: cannot be listed ({error.strerror})") from None


def _in_folder(folder: Path, output: Path | None, left_out: Counter[str]) -> Iterator[Source]:
    for path in _walk(folder, _inside(folder, output), left_out):
        if _is_taken(path, left_out):
            yield Source(path, path.relative_to(folder))


def _matching(pattern: str, output: Path | None, left_out: Counter[str]) -> Iterator[Source]:
    root, rest = _split(pattern)
    asked = Path(pattern).suffix.lower()  # `*.xyz` does ask for such files
    results = _inside(root, output)
    for path in (root / name for name in sorted(glob.glob(rest, root_dir=root, recursive=True))):
        if results and real_path(path).is_relative_to(results):
            continue
        if os.path.isdir(path):
            if Path(rest).name != "**":  # which matches the files as well
                yield from _in_folder(path, output, left_out)
        elif not _is_special(path, left_out) and _is_taken(path, left_out, asked):
            yield Source(path, Path(path.name))


def _split(pattern: str) -> tuple[Path, str]:
    """Return the leading folders of a glob that exist as they are written, brackets and all, and the rest."""
    root, (*folders, name) = Path(), Path(pattern).parts
    while folders and os.path.isdir(root / folders[0]):
        root /= folders.pop(0)
    return root, os.path.join(*folders, name) + "/" * pattern.endswith("/")


def _is_taken(path: Path, left_out: Counter[str], asked: str = "") -> bool:
    """Return whether a file in a folder is a photo to restore; if not, count it.

    Args:
        path: The file.
        left_out: Counts it by its kind.
        asked: A suffix that is taken whatever it is.
    """
    suffix = path.suffix.lower()
    if suffix in readable_suffixes() or (asked and suffix == asked) or (not suffix and is_image(path)):
        return True
    left_out[kind_left_out(suffix)] += 1
    return False


def kind_left_out(suffix: str) -> str:
    """Return what to call files of a suffix (in lower case) that cannot be read here."""
    kind = printable_path(suffix) or "without a suffix"
    return f"{kind} (to read them, {INSTALL})" if missing_plugin(suffix) else kind


def _is_special(path: Path, left_out: Counter[str]) -> bool:
    """Return whether a path is a pipe or the like, which may never end; if so, count it."""
    if os.path.isfile(path) or not os.path.exists(path):
        return False
    left_out["pipe(s) or other special file(s)"] += 1
    return True


def _walk(root: Path, results: Path | None, left_out: Counter[str]) -> Iterator[Path]:
    """Yield the files of a folder and those below, in order, without hidden ones and ``results``.

    Folders behind links are counted: they may lead back.
    """
    waiting = [root]
    while waiting:
        here, folders = waiting.pop(), list[Path]()
        try:
            with os.scandir(here) as entries:
                is_file = {e.name: e.is_file(follow_symlinks=False) for e in entries if e.name[0] != "."}
        except OSError:
            left_out["folder(s) that cannot be read"] += 1
            continue
        for name in sorted(is_file):
            path = here / name
            if results and real_path(path) == results:
                continue
            if is_file[name]:  # most are: nothing more is asked of the disk
                yield path
            elif not os.path.isdir(path):
                if not _is_special(path, left_out):
                    yield path
            elif path.is_symlink():
                left_out["folder(s) behind a link"] += 1
            else:
                folders.append(path)
        waiting += reversed(folders)


def _inside(root: Path, output: Path | None) -> Path | None:
    """Return the real path of an output inside of root; None for root itself, or a folder above it."""
    if output is None:
        return None
    out, inside = real_path(output), real_path(root)
    return out if out != inside and out.is_relative_to(inside) else None
