"""Write files whole or not at all, and recognise those that were not downloaded."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path


def not_the_file(head: bytes) -> str | None:
    """Return what a file is that a download left in the place of another one, and what to do; or None.

    Args:
        head: How the file begins, 64 bytes or more of it.
    """
    if head.startswith(b"version https://git-lfs."):
        return "a Git LFS pointer, not the file itself; run git lfs pull where you cloned it"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not the file itself; download it again"
    return None


def write_whole(path: Path, write: bytes | Callable[[Path], object], unfinished: Path | None = None) -> None:
    """Write a file that appears under its name only when it is complete.

    Args:
        path: The file; its folder is made if need be. A link stays a link, to the new file. Something else
            than a file, such as a pipe, is written to.
        write: The content, or a function that writes the content to the file that it is called with.
        unfinished: Folder, on the disk of the file, where it lies until it is complete; by default beside it.

    Raises:
        OSError: The file cannot be written; what was there before is still there.
    """
    if path.exists() and not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            write_whole(whole := Path(folder, "whole"), write)
            with path.open("wb") as stream:
                stream.write(whole.read_bytes())
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # A short name: the file's own may be as long as names can be.
    temporary = (unfinished or path.parent) / f".{uuid.uuid4().hex}.part"
    try:
        if isinstance(write, bytes):
            temporary.write_bytes(write)
        else:
            write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the name without its content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
