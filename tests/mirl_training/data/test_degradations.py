"""Test degradations: their strength, their levels, and that the same draw gives the same result."""

import numpy as np
import pytest

from mirl_training.data import degrade
from mirl_training.data.degradations import (
    add_fog,
    add_haze,
    add_jpeg,
    add_jpeg_drawn,
    add_noise,
    add_rain,
    share,
)


def psnr(a, b):
    return -10 * np.log10(np.mean((a.astype(float) - b) ** 2))


@pytest.fixture
def photo():
    y, x = np.mgrid[0:160, 0:200]
    waves = [0.45 + 0.25 * np.sin(x / (9 + c)) * np.cos(y / (13 - c)) for c in range(3)]
    return np.stack(waves, -1).astype(np.float32)


@pytest.mark.parametrize("sigma", [15, 25])
def test_noise_has_its_strength(photo, sigma):
    noisy = add_noise(photo, sigma, np.random.default_rng(0))
    assert psnr(noisy, photo) == pytest.approx(20 * np.log10(255 / sigma), abs=0.1)


def test_noise_is_clipped_as_a_file_clips_it():
    noisy = add_noise(np.zeros((64, 64, 3), np.float32), 50, np.random.default_rng(0))
    assert noisy.min() == 0
    assert psnr(noisy, 0 * noisy) == pytest.approx(20 * np.log10(255 / 50) + 3.01, abs=0.2)


@pytest.mark.parametrize("target", [22.0, 25.5, 30.0])
def test_rain_is_light_and_of_the_asked_strength(photo, target):
    rng = np.random.default_rng(1)
    for _ in range(5):
        rainy = add_rain(photo, rng, target)
        assert psnr(rainy, photo) == pytest.approx(target, abs=0.3)
        assert (rainy >= photo - 1 / 255).all()


def test_rain_is_calibrated(photo):
    rng = np.random.default_rng(2)
    assert np.mean([psnr(add_rain(photo, rng), photo) for _ in range(60)]) == pytest.approx(25.5, abs=1.0)


def test_haze_follows_koschmieder(photo):
    depth = np.linspace(0, 3, photo.shape[1])[None].repeat(len(photo), 0)
    hazy = add_haze(photo, depth, 0.7, 0.9)
    t = np.exp(-0.7 * depth)[..., None]
    np.testing.assert_allclose(hazy, photo * t + 0.9 * (1 - t), atol=0.51 / 255)


def test_fog_brings_every_pixel_towards_one_airlight(photo):
    rng = np.random.default_rng(3)
    strengths = []
    for _ in range(30):
        foggy = add_fog(photo, rng)
        assert foggy.std() < photo.std()
        strengths.append(psnr(foggy, photo))
    assert 8 < min(strengths) < max(strengths) < 30


@pytest.mark.parametrize("degrade", [lambda x, r: add_noise(x, 25, r), add_rain, add_fog])
def test_results_are_8_bit_levels_and_repeat_with_the_seed(photo, degrade):
    once, again = (degrade(photo, np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert (once != degrade(photo, np.random.default_rng(8))).any()
    assert once.dtype == np.float32
    np.testing.assert_allclose(once * 255, np.rint(once * 255), atol=1e-4)
    assert 0 <= once.min() <= once.max() <= 1


def test_jpeg_harms_more_at_lower_quality_and_by_blocks():
    rng = np.random.default_rng(0)
    photo = (
        np.kron(rng.random((20, 25, 3)), np.ones((8, 8, 1))) * 0.6 + rng.random((160, 200, 3)) * 0.2
    ).astype(np.float32)
    scores = [psnr(add_jpeg(photo, quality), photo) for quality in (10, 40, 90)]
    assert 20 < scores[0] < scores[1] - 1 < scores[2] - 2
    harmed = add_jpeg(photo, 10)
    change = np.abs(np.diff(harmed, axis=1)).mean((0, 2))
    within = [c for i, c in enumerate(change) if i % 8 != 7]
    assert np.mean(change[7::8]) > 2 * np.mean(within)  # edges between blocks stay


def test_shared_photos_keep_their_size_and_come_out_the_same_from_the_same_draw(photo):
    seen = set()
    for seed in range(12):
        for harm in (share, add_jpeg_drawn):
            harmed = harm(photo, np.random.default_rng(seed))
            assert harmed.shape == photo.shape and harmed.dtype == np.float32
            np.testing.assert_array_equal(harmed, harm(photo, np.random.default_rng(seed)))
            np.testing.assert_allclose(harmed * 255, np.rint(harmed * 255), atol=1e-4)
            assert 20 < psnr(harmed, photo) < 60
            seen.add(round(psnr(harmed, photo), 3))
    assert len(seen) > 15
    assert share(photo[:1, :1], np.random.default_rng(0)).shape == (1, 1, 3)


def test_a_task_names_how_strongly_it_degrades(photo):
    draw = np.random.default_rng
    np.testing.assert_array_equal(degrade(photo, "noise25", draw(3)), add_noise(photo, 25, draw(3)))
    np.testing.assert_array_equal(degrade(photo, "jpeg10", draw(3)), add_jpeg(photo, 10))
    assert len({psnr(degrade(photo, "jpeg", draw(i)), photo) for i in range(9)}) > 4
