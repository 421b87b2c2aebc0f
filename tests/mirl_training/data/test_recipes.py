"""Test recipes: what they do to photos, that one seed gives one pair, and which settings are refused."""

import numpy as np
import pytest
from pydantic import ValidationError
from tiny import settings

from mirl_sparse.architectures.promptir import ConfigError
from mirl_training.data import Recipe, TrainingData
from mirl_training.data.degradations import NOISES, add_camera_noise, add_jpeg
from mirl_training.data.graphics import draw_graphics


def psnr(a, b):
    return -10 * np.log10(np.mean((a.astype(float) - b) ** 2))


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def photo():
    y, x = np.mgrid[0:160, 0:200]
    waves = [0.45 + 0.25 * np.sin(x / (9 + c)) * np.cos(y / (13 - c)) for c in range(3)]
    texture = rng(5).uniform(-0.1, 0.1, (160, 200, 1))
    return np.rint((np.stack(waves, -1) + texture) * 255).astype(np.float32) / np.float32(255)


STEPS = {
    "noise": {"step": "noise", "sigma": [5, 40], "kinds": sorted(NOISES), "shot": [0, 1]},
    "jpeg": {"step": "jpeg", "quality": [20, 95], "subsamplings": ["4:2:0", "4:4:4"], "times": [1, 2]},
    "webp": {"step": "webp", "quality": [20, 95]},
    "rain": {"step": "rain", "psnr": [14, 34]},
    "fog": {"step": "fog", "colour": [0, 0.5]},
    "blur": {"step": "blur", "sigma": [1, 3]},
    "rescale": {"step": "rescale", "scale": [0.3, 0.8]},
    "share": {"step": "share"},
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_degrades_and_one_seed_gives_one_pair(photo, name):
    recipe = Recipe(steps=[STEPS[name]], grey=0.3, smaller=0.3)
    for seed in range(8):
        bad, good = recipe.pair(None, photo, (64, 64), rng(seed))
        again = recipe.pair(None, photo, (64, 64), rng(seed))
        np.testing.assert_array_equal(bad, again[0])
        np.testing.assert_array_equal(good, again[1])
        for image in (bad, good):
            assert image.shape == (64, 64, 3) and image.dtype == np.float32
            np.testing.assert_allclose(image * 255, np.rint(image * 255), atol=1e-4)
            assert 0 <= image.min() <= image.max() <= 1
        assert (bad != good).any()
    assert (bad != recipe.pair(None, photo, (64, 64), rng(99))[0]).any()


def test_a_recipe_without_steps_leaves_the_photo_as_it_is(photo):
    bad, good = Recipe().pair(None, photo, None, rng())
    np.testing.assert_array_equal(bad, photo)
    np.testing.assert_array_equal(good, photo)


def test_a_pair_is_cut_turned_and_made_grey_alike(photo):
    recipe = Recipe(source="real", grey=0.5, smaller=0.5)
    for seed in range(12):
        bad, good = recipe.pair(photo, photo, (48, 48), rng(seed))
        np.testing.assert_array_equal(bad, good)


def test_a_patch_may_be_as_large_as_the_photo(photo):
    recipe = Recipe(smaller=1, steps=[STEPS["jpeg"]])
    for seed in range(8):
        bad, good = recipe.pair(None, photo[:, :160], (160, 160), rng(seed))
        assert bad.shape == good.shape == (160, 160, 3)
    assert recipe.pair(None, photo, (160, 120), rng())[0].shape == (160, 120, 3)


def test_probabilities_hold(photo):
    recipe = Recipe(grey=0.25, steps=[{"step": "noise", "sigma": 20, "probability": 0.5}])
    greys = changed = 0
    for seed in range(200):
        bad, good = recipe.pair(None, photo, (16, 16), rng(seed))
        greys += np.ptp(good, axis=2).max() < 0.02
        changed += (bad != good).any()
    assert 25 < greys < 55  # 40 of 50 grey ones have no tint
    assert 75 < changed < 125


@pytest.mark.parametrize("kind", NOISES)
def test_noise_has_its_deviation_and_its_structure(photo, kind):
    flat = np.full((256, 256, 3), 0.5, np.float32)
    noise = (add_camera_noise(flat, 20, kind, 0.5, rng()) - flat) * 255
    assert noise.std(axis=(0, 1)).max() == pytest.approx(20, rel=0.08)
    neighbours = np.corrcoef(noise[:, 1:, 1].ravel(), noise[:, :-1, 1].ravel())[0, 1]
    assert (neighbours > 0.2) == (kind in ("mosaic", "smooth"))
    channels = np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]
    assert (channels > 0.9) == (kind == "common")
    assert channels == pytest.approx(1, abs=0.01) or abs(channels) < 0.2


def test_photon_noise_grows_with_the_light():
    ramp = np.repeat(np.linspace(0.1, 0.9, 256, dtype=np.float32)[None, :, None], 256, 0).repeat(3, 2)
    noise = add_camera_noise(ramp, 10, "white", 1, rng()) - ramp
    dark, light = noise[:, :64].std(), noise[:, -64:].std()
    assert light / dark == pytest.approx((0.8 / 0.2) ** 0.5, rel=0.1)


def test_grey_photos_get_the_same_noise_in_all_channels(photo):
    recipe = Recipe(grey=1, steps=[{"step": "noise", "sigma": 25, "grey_common": 1}])
    seen = [np.ptp(recipe.pair(None, photo, (32, 32), rng(seed))[0], axis=2).max() for seed in range(30)]
    assert sum(spread < 0.01 for spread in seen) > 15  # a fifth is tinted
    colour = Recipe(steps=[{"step": "noise", "sigma": 25}]).pair(None, photo, (32, 32), rng())[0]
    assert np.ptp(colour, axis=2).max() > 0.3


def test_rain_is_as_strong_as_asked_and_has_one_target(photo):
    for target in (15, 20, 30):
        recipe = Recipe(steps=[{"step": "rain", "psnr": target}])
        scores = [psnr(*recipe.pair(None, photo, None, rng(seed))) for seed in range(6)]
        assert np.mean(scores) == pytest.approx(target, abs=1)


def test_steps_come_in_a_drawn_order_if_asked(photo):
    steps = [{"step": "noise", "sigma": 40}, {"step": "jpeg", "quality": 10}]
    block_edges = {False: [], True: []}
    for shuffle, edges in block_edges.items():
        for seed in range(24):
            bad, good = Recipe(shuffle=shuffle, steps=steps).pair(None, photo, None, rng(seed))
            edges.append(psnr(bad, good))
    assert max(block_edges[True]) - min(block_edges[True]) > 2  # noise behind JPEG is not smoothed by it
    assert max(block_edges[False]) - min(block_edges[False]) < 1


def test_blocks_of_jpeg_begin_anywhere_in_a_patch():
    flat = np.kron(rng(1).random((40, 40, 3)), np.ones((4, 4, 1))).astype(np.float32)
    recipe = Recipe(steps=[{"step": "jpeg", "quality": 10}])
    places = set()
    for seed in range(30):
        bad, _ = recipe.pair(None, flat, (64, 64), rng(seed))
        jumps = np.abs(np.diff(bad.mean(2), axis=1)).mean(0)
        places.add(int(np.argmax([jumps[i::8].mean() for i in range(8)])))
    assert len(places) > 2


def test_graphics_take_the_place_of_photos(photo):
    drawn = draw_graphics(64, 96, rng(3))
    assert drawn.shape == (64, 96, 3)
    np.testing.assert_array_equal(drawn, draw_graphics(64, 96, rng(3)))
    recipe = Recipe(graphics=1)
    bad, good = recipe.pair(None, photo, (32, 32), rng())
    np.testing.assert_array_equal(bad, good)
    assert not any(
        np.array_equal(good, photo[y : y + 32, x : x + 32]) for y in range(128) for x in range(168)
    )


def test_matte_photos_are_grey_or_drawn_and_stay_as_they_are(photo):
    for recipe in (Recipe(grey=1, matte=1), Recipe(graphics=1, matte=1)):
        for seed in range(5):
            bad, good = recipe.pair(None, photo, (32, 32), rng(seed))
            np.testing.assert_array_equal(bad, good)
            np.testing.assert_allclose(good * 255, np.rint(good * 255), atol=1e-4)
    grey, pale = (Recipe(grey=1, matte=m).pair(None, photo, (32, 32), rng(1))[1] for m in (0, 1))
    assert np.ptp(pale) < 0.9 * np.ptp(grey)
    np.testing.assert_array_equal(
        *(Recipe(matte=m).pair(None, photo, (32, 32), rng(1))[1] for m in (0, 1))  # a colour photo
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": [{"step": "snow"}]}, "snow"),
        ({"steps": [{"step": "noise", "sigma": [30, 10]}]}, "lower end first"),
        ({"steps": [{"step": "jpeg", "quality": 120}]}, "100"),
        ({"grey": 2}, "less than or equal to 1"),
        ({"graphics": 0.5, "source": "haze"}, "source clean"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        Recipe(**changes)


def recipes(**changes):
    return settings(
        data={
            "tasks": {"grey noise": 1, "hazy": 1},
            "recipes": {
                "grey noise": {"grey": 1, "steps": [{"step": "noise", "sigma": 30}]},
                "hazy": {"source": "haze"},
            },
        }
        | changes
    )


def test_a_run_trains_and_validates_on_its_recipes(photos):
    data = TrainingData(recipes(), photos)
    degraded, clean = data.batch(0, 0)
    assert degraded.shape == clean.shape == (2, 3, 16, 16)
    assert (degraded == data.batch(0, 0)[0]).all()
    validation = data.validation()
    assert list(validation) == ["grey noise", "hazy"]
    (noisy, grey), (hazy, seen) = validation["grey noise"][0], validation["hazy"][0]
    assert noisy.shape == grey.shape and hazy.shape == seen.shape
    assert (grey[:, 0] - grey[:, 1]).abs().max() < 0.51  # a tint at most
    assert (hazy - seen).abs().mean() > 0.05


def test_jpeg_of_a_step_is_the_jpeg_of_a_file(photo):
    bad, good = Recipe(steps=[{"step": "jpeg", "quality": 30}]).pair(None, photo, None, rng())
    np.testing.assert_array_equal(bad, add_jpeg(good, 30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"fast": 1}}, "'fast'; expected one of grey noise, hazy, noise15"),
        ({"recipes": {"rain": {}}}, "a task of its own"),
        ({"recipes": {"grey noise": {"source": "real"}}, "tasks": {"grey noise": 1}}, "real names no folder"),
    ],
)
def test_tasks_that_no_recipe_or_folder_serves_are_refused(changes, message):
    with pytest.raises((ConfigError, ValidationError), match=message):
        recipes(**changes)
