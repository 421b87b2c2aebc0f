"""Make folders of photos of many kinds, some of which are bad."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

_GOOD = [("png", "RGB"), ("jpg", "RGB"), ("webp", "RGB"), ("tif", "RGB"), ("bmp", "RGB"), ("gif", "P")]
_GOOD += [("png", "RGBA"), ("jpg", "L"), ("png", "I;16"), ("webp", "RGBA"), ("jpg", "CMYK")]
_FOLDERS = 7


def make_photos(folder: Path, count: int, bad: int, sides: tuple[int, int], seed: int = 0) -> list[str]:
    """Make photos in subfolders, and return the keys of the bad ones.

    Args:
        folder: Where they go.
        count: How many in all.
        bad: How many of them cannot be restored.
        sides: Shortest and longest side in pixels.
        seed: Of what they show, and of which are bad.
    """
    rng, keys = np.random.default_rng(seed), list[str]()
    are_bad = set(rng.choice(count, bad, replace=False).tolist())
    for number in range(count):
        suffix, mode = _GOOD[number % len(_GOOD)]
        height, width = rng.integers(sides[0], sides[1] + 1, 2)
        data = _encoded(rng, mode, suffix, int(height), int(width))
        if number in are_bad:
            suffix, spoil = _BAD[len(keys) % len(_BAD)]
            data = spoil(data)
        key = f"{number % _FOLDERS}/{number:05}.{suffix}"
        if number in are_bad:
            keys.append(key)
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    return keys


def _encoded(rng: np.random.Generator, mode: str, suffix: str, height: int, width: int) -> bytes:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 40) + y / rng.uniform(3, 40) + i) for i in range(4)]
    pixels = np.stack(waves, -1) * 100 + 128 + rng.normal(0, 12, (height, width, 1))
    if mode == "I;16":
        image = Image.fromarray((pixels[..., 0].clip(0, 255) * 257).astype(np.uint16))
    else:
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA").convert("RGB").convert(mode)
    stream = io.BytesIO()
    image.save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return stream.getvalue()


def _jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 120, 150)).save(stream, "JPEG")
    return stream.getvalue()


def _animation() -> bytes:
    frames = [Image.new("L", (16, 16), value) for value in (0, 128, 255)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


_BAD: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("png", lambda data: b""),
    ("png", lambda data: b"\x89PNG\r\n\x1a\n" + bytes(100)),
    ("jpg", lambda data: _jpeg()[:200]),
    ("jpg", lambda data: b"<!DOCTYPE html><title>404</title>"),
    ("webp", lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    ("gif", lambda data: _animation()),
    ("tif", lambda data: b"II*\0" + b"\xff" * 60),
    ("jpg", lambda data: bytes(16) + data),
]
