"""Lay photos out side by side, each with its caption."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
_WIDTH, _GAP, _CAPTION = 480, 8, 28  # of the columns, in pixels


def sheet(rows: list[tuple[list[Pixels], list[str]]]) -> Pixels:
    """Return a picture (H, W, 3) of rows of photos at one width, each with its caption above.

    Args:
        rows: Rows of photos (h, w, 3) uint8, each with as many captions.
    """
    font = ImageFont.load_default(18)
    heights = [round(photos[0].shape[0] * _WIDTH / photos[0].shape[1]) for photos, _ in rows]
    columns = max(len(photos) for photos, _ in rows)
    page = Image.new("RGB", (columns * (_WIDTH + _GAP), sum(heights) + len(rows) * _CAPTION), "white")
    draw, y = ImageDraw.Draw(page), 0
    for height, (photos, captions) in zip(heights, rows, strict=True):
        for i, (photo, caption) in enumerate(zip(photos, captions, strict=True)):
            x = i * (_WIDTH + _GAP) + _GAP // 2
            draw.text((x, y + 4), caption, "black", font)
            page.paste(Image.fromarray(photo).resize((_WIDTH, height)), (x, y + _CAPTION))
        y += height + _CAPTION
    return np.asarray(page)
