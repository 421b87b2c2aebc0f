"""Define what a photo holds, and the error of files that hold none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mirl_sparse.errors import UserError

Pixels = NDArray[np.uint8]


class ImageError(UserError):
    """Report a file that cannot be read or written as an image; the message is one line for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


@dataclass(frozen=True)
class Photo:
    """Hold an upright image, and what belongs to it.

    Attributes:
        pixels: RGB uint8 (H, W, 3), where there is alpha not multiplied by it.
        alpha: Transparency, uint8 (H, W), 255 is opaque; None if the image has none.
        exif: EXIF without orientation, as Pillow takes it; empty if there is none.
        icc: RGB colour profile; empty if there is none. Pixels of CMYK and of opaque grey of 8 bits are
            converted to sRGB by their own profile; that of other grey is dropped.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    exif: bytes = b""
    icc: bytes = b""


def on_white(pixels: Pixels, alpha: Pixels | None) -> Pixels:
    """Return RGB (H, W, 3) laid on white by its alpha (H, W)."""
    if alpha is None:
        return pixels
    cover = alpha[..., None].astype(np.uint16)
    covered = pixels * cover + 255 * (255 - cover) + 127  # at most 65152: no overflow
    return (covered // 255).astype(np.uint8)


def printable_path(path: str | Path) -> str:
    """Return a path as it is printed in one line, even if it holds line breaks or bytes that are no UTF-8."""
    return " ".join(os.fsencode(path).decode("utf-8", "replace").splitlines())


def reason(error: Exception) -> str:
    """Return why something failed, without the name of the file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
