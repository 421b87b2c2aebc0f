"""List the images of data folders, and the pairs of a degraded and a clean one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mirl_sparse.errors import UserError
from mirl_sparse.photos.formats import readable_suffixes

# How the names of degraded photos end, by the kind of pairs (MIR-L's layout, and "real" noise of cameras).
PAIR_SUFFIXES: Mapping[str, str] = {"rain": "rainy", "haze": "hazy", "real": "noisy"}


class DataError(UserError):
    """Report a data folder that lacks what training or scoring needs, in one line for the user."""


class Source(NamedTuple):
    """Name the files of one sample.

    Attributes:
        degraded: The degraded photo; None where it is made from the clean one.
        clean: The clean photo.
    """

    degraded: Path | None
    clean: Path


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder, sorted by name.

    Images are files with the suffix of a readable format. Hidden files and folders are ignored, as
    ``mirl-sparse restore`` ignores them.

    Raises:
        DataError: The folder does not exist, or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give --data the root that holds it")
    paths = sorted(p for p in folder.iterdir() if _is_image(p))
    if not paths:
        raise DataError(f"{folder}: holds no image")
    return paths


def _is_image(path: Path) -> bool:
    if path.suffix.lower() not in readable_suffixes() or path.name.startswith("."):
        return False
    # No pipe, which may never end; a link to nothing is taken, so that it is not passed over.
    return os.path.isfile(path) or not os.path.exists(path)


def list_pairs(folder: Path, suffix: str) -> list[tuple[Path, Path]]:
    """Return the pairs of a folder, sorted by the input's name.

    Args:
        folder: The folder, with ``input/NAME_<suffix>.*`` and ``target/NAME_gt.*``. Both endings may be left
            out, both files may have the same name, and inputs may be named as in RESIDE,
            ``NAME_<airlight>_<scattering>.*``.
        suffix: One of `PAIR_SUFFIXES`.

    Returns:
        (degraded, clean) of each pair.

    Raises:
        DataError: A folder is missing or empty, an input has no target, or two targets have the same NAME.
    """
    targets: dict[str, Path] = {}
    for path in list_images(folder / "target"):
        name = re.sub("_gt$", "", path.stem, flags=re.IGNORECASE)
        if name in targets:
            raise DataError(
                f"{targets[name]} and {path}: are both the target of {name}; expected one, remove the other"
            )
        targets[name] = path
    pairs = []
    for path in list_images(folder / "input"):
        names = _names(path.stem, suffix)
        target = next((targets[name] for name in (path.stem, *names) if name in targets), None)
        if target is None:
            raise DataError(f"{path}: has no {names[0]}_gt.* in {folder / 'target'}")
        pairs.append((path, target))
    return pairs


def _names(stem: str, suffix: str) -> list[str]:
    """Return the names that the target of an input may have, the likeliest first."""
    names = [re.sub(f"_{suffix}$", "", stem, flags=re.IGNORECASE)]
    while (shorter := re.sub(r"_\d+(\.\d+)?$", "", names[-1])) != names[-1]:
        names.append(shorter)
    return names
