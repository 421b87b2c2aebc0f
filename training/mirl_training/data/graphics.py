"""Draw pictures that no camera took: text, shapes and gradients, as screenshots and scans hold them."""

from __future__ import annotations

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from mirl_training.data.degradations import Image

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.:;!?-+()/&%"


def draw_graphics(height: int, width: int, rng: np.random.Generator) -> Image:
    """Draw a picture (height, width, 3) in [0, 1] on 256 levels.

    It has a flat or graded background, up to eight shapes and up to twelve lines of text.
    """
    corners = rng.uniform(0, 1, (2, 2, 3)) if rng.random() < 0.5 else np.full((2, 2, 3), rng.uniform(0, 1, 3))
    if rng.random() < 0.4:
        corners = np.full((2, 2, 3), rng.choice([0.0, 0.95, 1.0]))
    ground = Pillow.fromarray((corners * 255).astype(np.uint8)).resize(
        (width, height), Pillow.Resampling.BILINEAR
    )
    draw = ImageDraw.Draw(ground)

    def colour() -> tuple[int, ...]:
        return (
            (int(rng.integers(256)),) * 3
            if rng.random() < 0.5
            else tuple(int(c) for c in rng.integers(0, 256, 3))
        )

    for _ in range(rng.integers(9)):
        x0, x1 = sorted(int(x) for x in rng.integers(-width // 4, width * 5 // 4, 2))
        y0, y1 = sorted(int(y) for y in rng.integers(-height // 4, height * 5 // 4, 2))
        shape = rng.integers(3)
        if shape == 0:
            draw.rectangle((x0, y0, x1, y1), colour())
        elif shape == 1:
            draw.ellipse((x0, y0, x1, y1), colour())
        else:
            draw.line((x0, y0, x1, y1), colour(), int(rng.integers(1, 6)))
    for _ in range(rng.integers(13)):
        text = "".join(_LETTERS[i] for i in rng.integers(0, len(_LETTERS), rng.integers(3, 24)))
        place = int(rng.integers(-20, max(1, width - 10))), int(rng.integers(-5, max(1, height - 5)))
        draw.text(place, text.replace("q", " "), colour(), ImageFont.load_default(int(rng.integers(9, 32))))
    return np.asarray(ground, np.uint8).astype(np.float32) / np.float32(255)
