"""Define what a photo holds, and the error of files that hold none."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mirl_sparse.errors import UserError
from mirl_sparse.photos.png import PngExtras

Pixels = NDArray[np.uint8]
DeepPixels = NDArray[Any]  # uint8 or uint16


class ImageError(UserError):
    """Report a file that cannot be read or written as an image; the message is one line for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class UnknownFormatError(ImageError):
    """Report a file that is no image of a format that can be read."""


class TooManyPixelsError(ImageError):
    """Report an image with more pixels than are decoded."""


@dataclass(frozen=True)
class Photo:
    """Hold an upright image, and what belongs to it.

    Attributes:
        pixels: RGB (H, W, 3), uint8, or uint16 of an image that has more bits; where there is alpha not
            multiplied by it.
        alpha: Transparency (H, W) of the same type, opaque where it is highest; None if the image has none.
        exif: EXIF without orientation, as Pillow takes it; empty if there is none.
        icc: RGB colour profile; empty if there is none. Pixels of CMYK and of grey are converted to sRGB by
            their own profile. Where that cannot be done (a grey profile without a curve), it is dropped.
        xmp: XMP packet; empty if there is none.
        iptc: IPTC and what else Photoshop stores in a JPEG (application segment 13); empty if there is none.
        comment: Comment of a JPEG; empty if there is none.
        dpi: Pixels per inch, across and down; None if the file does not say.
        png: Text and colour space of a PNG file.
        lossless: Whether the file stores its pixels without loss.
    """

    pixels: DeepPixels
    alpha: DeepPixels | None = None
    exif: bytes = b""
    icc: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    comment: bytes = b""
    dpi: tuple[float, float] | None = None
    png: PngExtras = field(default_factory=PngExtras)
    lossless: bool = False

    def with_pixels(self, pixels: DeepPixels) -> Photo:
        """Return the photo with other pixels; if these are more, its transparency is enlarged."""
        alpha = self.alpha
        if alpha is not None and alpha.shape != pixels.shape[:2]:
            size = pixels.shape[1], pixels.shape[0]
            enlarged = Image.fromarray(alpha.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
            alpha = np.asarray(enlarged).round().clip(0, np.iinfo(alpha.dtype).max).astype(alpha.dtype)
        return replace(self, pixels=pixels, alpha=alpha)

    def without_metadata(self) -> Photo:
        """Return the photo with nothing but its pixels, their transparency and their colour space."""
        png = PngExtras(colour_space=self.png.colour_space)
        return replace(self, exif=b"", xmp=b"", iptc=b"", comment=b"", dpi=None, png=png)

    def in_eight_bits(self) -> Photo:
        """Return the photo with 8 bits a channel."""
        alpha = None if self.alpha is None else eight_bits(self.alpha)
        return replace(self, pixels=eight_bits(self.pixels), alpha=alpha)


def eight_bits(values: DeepPixels) -> Pixels:
    """Return uint8 values: those of uint16, 0..65535, scaled to 0..255 and rounded."""
    if values.dtype == np.uint8:
        return values
    rounded: Pixels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return rounded


def on_white(pixels: Pixels, alpha: Pixels | None) -> Pixels:
    """Return RGB (H, W, 3) laid on white by its alpha (H, W)."""
    if alpha is None:
        return pixels
    cover = alpha[..., None].astype(np.uint16)
    covered = pixels * cover + 255 * (255 - cover) + 127  # at most 65152: no overflow
    return (covered // 255).astype(np.uint8)


def printable_path(path: str | Path) -> str:
    """Return a path as it is printed in one line: control characters, and bytes not of UTF-8, are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    plain = (c.isprintable() or unicodedata.category(c) == "Zs" for c in text)  # Zs: spaces of any width
    return "".join(c if p else c.encode("unicode_escape").decode() for c, p in zip(text, plain, strict=True))


def reason(error: Exception) -> str:
    """Return why something failed, without the name of the file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
