"""Test the demo: it restores the same photos every time, makes them better, and draws one picture."""

import numpy as np
import pytest
from PIL import Image

from mirl_training.cli.demo import demo
from mirl_training.evaluation.demo_photos import demo_photos

NAMES = ["noisy", "rainy", "hazy", "grey", "clean"]


def test_demo_photos_are_degraded_and_always_the_same():
    first, again = list(demo_photos()), list(demo_photos())
    assert [photo.name for photo in first] == NAMES
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.degraded, b.degraded)
        assert a.degraded.shape == a.clean.shape
        assert a.clean.shape[0] % 16 == a.clean.shape[1] % 16 == 0
        error = np.abs(a.degraded.astype(int) - a.clean).mean()
        assert error == 0 if a.name == "clean" else error > 3


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    demo(tmp_path / "demo", runs=1)
    printed = capsys.readouterr().out
    assert printed.count("of 255") == len(NAMES)
    assert "speed-up" in printed
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    assert names == {f"{s}{end}.png" for s in NAMES for end in ("", "_restored")} | {"side_by_side.png"}
    for photo in demo_photos():
        before, after = (
            np.asarray(Image.open(tmp_path / f"demo/{photo.name}{end}.png")).astype(float)
            for end in ("", "_restored")
        )
        error = ((after - photo.clean) ** 2).mean()
        assert error < (3 if photo.name == "clean" else 0.8 * ((before - photo.clean) ** 2).mean())
