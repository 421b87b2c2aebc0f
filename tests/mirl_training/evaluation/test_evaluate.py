"""Test PSNR and SSIM over test sets in MIR-L's layout."""

import json

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from mirl_sparse.errors import UserError
from mirl_sparse.photos import read_image, write_image
from mirl_training.cli.eval import Suite
from mirl_training.cli.eval import evaluate as command
from mirl_training.data import DataError
from mirl_training.evaluation import (
    HIGHEST_PSNR,
    Triple,
    evaluate,
    everyday_sets,
    score_image,
    standard_sets,
)


def test_the_standard_sets_are_scored_image_by_image(tmp_path):
    rng = np.random.default_rng(0)
    clean = rng.integers(60, 190, (40, 50, 3)).astype(np.uint8)
    write_image(tmp_path / "denoise/CBSD68/a.png", clean)
    write_image(tmp_path / "derain/Rain100L/target/1_gt.png", clean)
    write_image(tmp_path / "derain/Rain100L/input/1_rainy.png", clean + 10)
    write_image(tmp_path / "dehaze/SOTS/target/1_0.8_gt.png", clean)
    write_image(tmp_path / "dehaze/SOTS/input/1_0.8_hazy.png", clean ^ 2)
    seen = []

    def restore(image):
        seen.append(image.shape)
        return clean[4:36, 1:49] ^ 1  # its middle

    scored = []
    sets = standard_sets(tmp_path)
    scores = {
        s.task: s
        for s in evaluate(restore, sets, lambda task, triple, *_: scored.append((task, triple.name)))
    }
    names = ["noise 15", "noise 25", "noise 50", "JPEG 10", "JPEG 40"]
    assert list(scores) == [*(f"CBSD68 {name}" for name in names), "Rain100L", "SOTS outdoor"]
    assert scored == list(zip(scores, ["a"] * 5 + ["1_rainy", "1_0.8_hazy"], strict=True))
    assert set(seen) == {(32, 48, 3)}  # cropped to a multiple of 16
    for sigma in (15, 25, 50):
        expected = 20 * np.log10(255 / sigma)
        assert scores[f"CBSD68 noise {sigma}"].input_psnr == pytest.approx(expected, abs=0.6)
    assert scores["Rain100L"].input_psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)
    # The same contrast, 10 brighter: of SSIM (Wang et al. 2004) only the means of its windows of 7x7 matter.
    a = sliding_window_view(clean[4:36, 1:49].astype(float), (7, 7), (0, 1)).mean((-2, -1))
    assert scores["Rain100L"].input_ssim == pytest.approx(
        ((2 * a * (a + 10) + 2.55**2) / (a**2 + (a + 10) ** 2 + 2.55**2)).mean(), abs=1e-9
    )
    for score in scores.values():
        assert score.psnr == pytest.approx(20 * np.log10(255))
        assert 0.99 < score.ssim < 1


def photos_in(folder, count=3, size=(40, 50)):
    """Smooth colour photos as PNG files."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    for i in range(count):
        planes = [128 + 20 * np.sin(x / (5 + c) + i) * np.cos(y / (6 - c)) for c in range(3)]
        write_image(folder / f"{i}.png", np.stack(planes, -1).astype(np.uint8))
    return folder


def test_a_restorer_that_changes_nothing_keeps_clean_photos_and_gains_nothing(tmp_path):
    sets = everyday_sets(photos_in(tmp_path))
    for score in evaluate(lambda image: image, sets):
        assert score.images == 3
        assert score.psnr == score.input_psnr
        assert score.worst_change == 0
        assert (score.psnr == HIGHEST_PSNR) == score.task.startswith("clean")


def test_everyday_photos_are_degraded_as_their_names_say(tmp_path):
    sets = everyday_sets(photos_in(tmp_path, size=(80, 96)))
    first = {name: next(images()) for name, images in sets.items()}
    for name, triple in first.items():
        again = next(sets[name]())
        np.testing.assert_array_equal(triple.degraded, again.degraded)
        for image in (triple.degraded, triple.clean):
            assert ("grey" in name) == (np.ptp(image, axis=2).max() == 0)
    error = first["noise 25, same in all channels"]
    difference = error.degraded.astype(int) - error.clean
    assert (np.ptp(difference, axis=2) <= 1).all()
    assert difference.std() == pytest.approx(25, abs=2)
    assert score_image(first["heavy rain"], first["heavy rain"].clean).input_psnr == pytest.approx(
        18, abs=0.5
    )


def test_the_worst_image_is_the_one_that_gained_least(tmp_path):
    sets = standard_sets(photos_in(tmp_path / "denoise/CBSD68").parent.parent)

    def restore(image):
        brighter = 40 if restore.calls == 1 else 0
        restore.calls += 1
        return np.clip(image.astype(int) + brighter, 0, 255).astype(np.uint8)

    restore.calls = 0
    score = next(evaluate(restore, sets))
    assert score.worst == "1"
    assert score.worst_change < -5
    assert score.worst_psnr < score.psnr


def test_an_image_too_small_to_score_is_named(tmp_path):
    write_image(tmp_path / "tiny.png", np.zeros((12, 40, 3), np.uint8))
    with pytest.raises(DataError, match=r"tiny\.png: is smaller than 16x16"):
        list(evaluate(lambda image: image, everyday_sets(tmp_path)))


@pytest.mark.parametrize("width", [64, 49])  # cropped to a multiple of 16, 49 is 48
def test_pairs_of_unequal_size_are_named(width, tmp_path):
    write_image(tmp_path / "derain/Rain100L/target/1_gt.png", np.zeros((32, 48, 3), np.uint8))
    write_image(tmp_path / "derain/Rain100L/input/1_rainy.png", np.zeros((32, width, 3), np.uint8))
    with pytest.raises(DataError, match=rf"1_rainy.png: is {width}x32 beside 48x32 of .*1_gt.png"):
        list(evaluate(lambda image: image, standard_sets(tmp_path)))


def test_images_of_one_stem_have_distinct_names(tmp_path):
    image = np.zeros((16, 16, 3), np.uint8)
    write_image(tmp_path / "derain/Rain100L/target/1_gt.png", image)
    for suffix in ("png", "bmp"):
        write_image(tmp_path / f"derain/Rain100L/input/1_rainy.{suffix}", image)
        write_image(tmp_path / f"denoise/CBSD68/a.{suffix}", image)
    names = {task: [t.name for t in images()] for task, images in standard_sets(tmp_path).items()}
    assert names["Rain100L"] == ["1_rainy.bmp", "1_rainy.png"]
    assert names["CBSD68 JPEG 10"] == ["a.bmp", "a.png"]


def test_a_perfect_result_counts_the_highest_psnr():
    image = np.full((16, 16, 3), 7, np.uint8)
    score = score_image(Triple("a", image ^ 1, image), image)
    assert score.psnr == HIGHEST_PSNR and score.ssim == 1
    assert score.input_psnr == pytest.approx(20 * np.log10(255))


def test_the_command_writes_scores_images_and_sheets(tmp_path, capsys):
    clean = np.full((32, 48, 3), 120, np.uint8)
    write_image(tmp_path / "denoise/CBSD68/a.b.png", clean)
    command("small", tmp_path, Suite.standard, tmp_path / "scores.json", tmp_path / "images")
    assert "CBSD68 JPEG 10" in capsys.readouterr().out
    written = json.loads((tmp_path / "scores.json").read_text())
    assert [s["task"] for s in written["scores"]][-1] == "CBSD68 JPEG 40"
    assert {s["worst"] for s in written["scores"]} == {"a.b"}
    assert written["ticket"] == "small"
    restored = read_image(tmp_path / "images/CBSD68_noise_15/a.b.png")
    assert restored.shape == clean.shape
    assert read_image(tmp_path / "images/CBSD68_noise_15.png").shape[1] > 3 * 400
    (tmp_path / "denoise/CBSD68").rename(tmp_path / "denoise/BSD68")  # as MIR-L's code has it
    command("small", tmp_path, Suite.standard, tmp_path / "again.json", None)
    assert json.loads((tmp_path / "again.json").read_text()) == written
    command("small", tmp_path, Suite.all, tmp_path / "all.json", None)
    every = [s["task"] for s in json.loads((tmp_path / "all.json").read_text())["scores"]]
    assert every[: len(written["scores"])] == [s["task"] for s in written["scores"]]
    assert "clean, grey" in every
    with pytest.raises(UserError, match="holds no test set"):
        command("small", tmp_path / "nowhere", Suite.all, None, None)
