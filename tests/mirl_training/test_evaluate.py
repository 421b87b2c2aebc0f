"""PSNR and SSIM over test sets in MIR-L's layout."""

import numpy as np
import pytest

from mirl_sparse.images import write_image
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
        return clean[: image.shape[0], : image.shape[1]] ^ 1

    scores = {s.task: s for s in evaluate(restore, tmp_path)}
    assert list(scores) == ["CBSD68 noise 15", "CBSD68 noise 25", "CBSD68 noise 50", "Rain100L", "SOTS outdoor"]
    assert set(seen) == {(32, 48, 3)}  # cropped to a multiple of 16
    for sigma in (15, 25, 50):
        expected = 20 * np.log10(255 / sigma)
        assert scores[f"CBSD68 noise {sigma}"].input_psnr == pytest.approx(expected, abs=0.6)
    assert scores["Rain100L"].input_psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)
    assert scores["Rain100L"].input_ssim < 1
    for score in scores.values():
        assert score.psnr == pytest.approx(20 * np.log10(255))
        assert 0.99 < score.ssim < 1
