"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: bytes | Callable[[Path], object]) -> None:
    """Put bytes, or what ``write`` puts into the file it is given, at ``path``; its folder is made if need be.

    The file appears under its name only when it is complete; OSError leaves what was there before. A link stays one, to the new file;
    what is no file, such as a pipe, is written to.
    """
    if path.exists() and not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            write_whole(whole := Path(folder, "whole"), write)
            with path.open("wb") as stream:
                stream.write(whole.read_bytes())
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f".{uuid.uuid4().hex}.part"
    )  # short: the name itself may be as long as names can be
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
