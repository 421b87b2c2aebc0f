"""PSNR and SSIM over test sets in MIR-L's layout."""

import json

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from mirl_sparse.errors import UserError
from mirl_sparse.images import read_image, write_image
from mirl_training.cli import evaluate as command
from mirl_training.evaluate import evaluate


def test_scores(tmp_path):
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

    kept = []
    scores = {s.task: s for s in evaluate(restore, tmp_path, lambda *given: kept.append(given[:2]))}
    names = ["noise 15", "noise 25", "noise 50", "JPEG 10", "JPEG 40"]
    assert list(scores) == [*(f"CBSD68 {name}" for name in names), "Rain100L", "SOTS outdoor"]
    assert kept == list(zip(scores, ["a"] * 5 + ["1_rainy", "1_0.8_hazy"], strict=True))
    assert set(seen) == {(32, 48, 3)}  # cropped to a multiple of 16
    for sigma in (15, 25, 50):
        expected = 20 * np.log10(255 / sigma)
        assert scores[f"CBSD68 noise {sigma}"].input_psnr == pytest.approx(expected, abs=0.6)
    assert scores["Rain100L"].input_psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)
    # The same contrast, 10 brighter: what is left of SSIM (Wang et al. 2004) is the means of its windows of 7x7.
    a = sliding_window_view(clean[4:36, 1:49].astype(float), (7, 7), (0, 1)).mean((-2, -1))
    assert scores["Rain100L"].input_ssim == pytest.approx(
        ((2 * a * (a + 10) + 2.55**2) / (a**2 + (a + 10) ** 2 + 2.55**2)).mean(), abs=1e-9
    )
    for score in scores.values():
        assert score.psnr == pytest.approx(20 * np.log10(255))
        assert 0.99 < score.ssim < 1


def test_the_command_writes_scores_and_images(tmp_path, capsys):
    clean = np.full((32, 48, 3), 120, np.uint8)
    write_image(tmp_path / "denoise/CBSD68/a.b.png", clean)
    command("small", tmp_path, tmp_path / "scores.json", tmp_path / "images")
    assert "CBSD68 JPEG 10" in capsys.readouterr().out
    written = json.loads((tmp_path / "scores.json").read_text())
    assert [s["task"] for s in written["scores"]][-1] == "CBSD68 JPEG 40"
    assert written["ticket"] == "small"
    restored = read_image(tmp_path / "images/CBSD68_noise_15/a.b.png")
    assert restored.shape == clean.shape
    (tmp_path / "denoise/CBSD68").rename(tmp_path / "denoise/BSD68")  # as MIR-L's code has it
    command("small", tmp_path, tmp_path / "again.json", None)
    assert json.loads((tmp_path / "again.json").read_text()) == written
    with pytest.raises(UserError, match="holds none"):
        command("small", tmp_path / "nowhere", None, None)
