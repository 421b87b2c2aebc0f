"""Test sheets of photos side by side."""

import numpy as np

from mirl_training.evaluation import sheet


def test_the_picture_holds_every_photo():
    red, blue = (np.full((40, 60, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    pixels = sheet([([red, blue], ["a", "b"]), ([blue, red], ["c", "d"])])
    half = pixels.shape[1] // 2
    for columns, colours in ((slice(0, half), [0, 2]), (slice(half, None), [2, 0])):
        middle = pixels[:, columns][:, half // 2]
        channels = [int(c) for c in middle.argmax(1)[(middle.max(1) == 255) & (middle.min(1) == 0)]]
        assert list(dict.fromkeys(channels)) == colours
