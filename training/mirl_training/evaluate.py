"""PSNR and SSIM of a restorer per task, as the field reports them.

scikit-image's definitions on RGB, data range 1, images cropped to a multiple of 16, the result
rounded to 8 bits; Gaussian noise is seeded per image and clipped to 8 bits (design of MIR-L and
PromptIR's test sets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mirl_sparse.images import read_image
from mirl_training.data import DataError, list_images, list_pairs
from mirl_training.degradations import add_noise

Pixels = NDArray[np.uint8]
CROP = 16


@dataclass(frozen=True)
class Score:
    """Means over one test set: of the degraded input and of the restored result, PSNR in dB."""

    task: str
    images: int
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float


def _cropped(image: Pixels) -> Pixels:
    height, width = (side // CROP * CROP for side in image.shape[:2])
    return image[:height, :width]


def test_sets(root: Path) -> dict[str, Callable[[], Iterator[tuple[Pixels, Pixels]]]]:
    """(degraded, clean) pairs per task, of the test sets found below ``root``: ``denoise/CBSD68``,
    ``derain/Rain100L`` and ``dehaze/SOTS`` in MIR-L's layout."""

    def noisy(sigma: int) -> Iterator[tuple[Pixels, Pixels]]:
        for i, path in enumerate(list_images(root / "denoise/CBSD68")):
            clean = _cropped(read_image(path))
            noise = add_noise(clean.astype(np.float32) / np.float32(255), sigma, np.random.default_rng([sigma, i]))
            yield np.rint(noise * 255).astype(np.uint8), clean

    def pairs(folder: str, suffix: str) -> Iterator[tuple[Pixels, Pixels]]:
        for degraded, clean in list_pairs(root / folder, suffix):
            yield _cropped(read_image(degraded)), _cropped(read_image(clean))

    found: dict[str, Callable[[], Iterator[tuple[Pixels, Pixels]]]] = {}
    if (root / "denoise/CBSD68").is_dir():
        for sigma in (15, 25, 50):
            found[f"CBSD68 noise {sigma}"] = lambda sigma=sigma: noisy(sigma)  # type: ignore[misc]
    if (root / "derain/Rain100L").is_dir():
        found["Rain100L"] = lambda: pairs("derain/Rain100L", "rainy")
    if (root / "dehaze/SOTS").is_dir():
        found["SOTS outdoor"] = lambda: pairs("dehaze/SOTS", "hazy")
    return found


def evaluate(restore: Callable[[Pixels], Pixels], root: Path) -> Iterator[Score]:
    """Score ``restore`` on every test set below ``root``."""
    for task, images in test_sets(root).items():
        rows = []
        for degraded, clean in images():
            row = []
            if degraded.shape != clean.shape or 0 in clean.shape:
                raise DataError(
                    f"{task}: {degraded.shape} beside {clean.shape}; expected equal sizes of {CROP} or more"
                )
            for candidate in (degraded, restore(degraded)):
                a, b = clean.astype(np.float64) / 255, candidate.astype(np.float64) / 255
                row += [
                    peak_signal_noise_ratio(a, b, data_range=1),
                    structural_similarity(a, b, data_range=1, channel_axis=-1),
                ]
            rows.append(row)
        yield Score(task, len(rows), *np.mean(rows, axis=0).tolist())
