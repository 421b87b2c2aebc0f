"""PSNR and SSIM of a restorer per task.

scikit-image's definitions on RGB, data range 1, images cropped to a multiple of 16; Gaussian noise is seeded per image and clipped
to 8 bits (design of MIR-L and PromptIR's test sets). The result is rounded to 8 bits, as the file is that a user gets; MIR-L's code does
not round, which at 38 dB is worth 0.03 dB, at 30 dB less than 0.01. Noise is rounded, too, where theirs is cut off, which makes it half
a level darker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mirl_sparse.images import read_image
from mirl_training.data import DataError, list_images, list_pairs
from mirl_training.degradations import Image, add_jpeg, add_noise

Pixels = NDArray[np.uint8]
Triples = Iterator[tuple[str, Pixels, Pixels]]
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
    """Its middle, of sides that are multiples of CROP."""
    top, left = (side % CROP // 2 for side in image.shape[:2])
    height, width = (side // CROP * CROP for side in image.shape[:2])
    return image[top : top + height, left : left + width]


def test_sets(root: Path) -> dict[str, Callable[[], Triples]]:
    """(name, degraded, clean) per task, of the test sets found below ``root``: ``denoise/CBSD68`` or, as MIR-L's code names it,
    ``denoise/BSD68`` (with noise, and as JPEG of quality 10 and 40), ``derain/Rain100L`` and ``dehaze/SOTS``."""
    photos = next((folder for name in ("CBSD68", "BSD68") if (folder := root / "denoise" / name).is_dir()), None)

    def harmed(folder: Path, harm: Callable[[Image, int], Image]) -> Triples:
        for i, path in enumerate(list_images(folder)):
            clean = _cropped(read_image(path))
            yield path.stem, np.rint(harm(clean.astype(np.float32) / np.float32(255), i) * 255).astype(np.uint8), clean

    def pairs(folder: str, suffix: str) -> Triples:
        for degraded, clean in list_pairs(root / folder, suffix):
            yield degraded.stem, _cropped(read_image(degraded)), _cropped(read_image(clean))

    def noise(sigma: int) -> Callable[[Image, int], Image]:
        return lambda image, i: add_noise(image, sigma, np.random.default_rng([sigma, i]))

    def jpeg(quality: int) -> Callable[[Image, int], Image]:
        return lambda image, _: add_jpeg(image, quality)

    found: dict[str, Callable[[], Triples]] = {}
    if photos:
        found |= {f"CBSD68 noise {sigma}": partial(harmed, photos, noise(sigma)) for sigma in (15, 25, 50)}
        found |= {f"CBSD68 JPEG {quality}": partial(harmed, photos, jpeg(quality)) for quality in (10, 40)}
    if (root / "derain/Rain100L").is_dir():
        found["Rain100L"] = partial(pairs, "derain/Rain100L", "rainy")
    if (root / "dehaze/SOTS").is_dir():
        found["SOTS outdoor"] = partial(pairs, "dehaze/SOTS", "hazy")
    return found


def evaluate(
    restore: Callable[[Pixels], Pixels], root: Path, keep: Callable[[str, str, Pixels], None] | None = None
) -> Iterator[Score]:
    """Score ``restore`` on every test set below ``root``; ``keep`` is given each task, name and restored image."""
    for task, images in test_sets(root).items():
        rows = []
        for name, degraded, clean in images():
            if degraded.shape != clean.shape or 0 in clean.shape:
                raise DataError(
                    f"{task}: {degraded.shape} beside {clean.shape}; expected equal sizes of {CROP} or more"
                )
            restored = restore(degraded)
            if keep:
                keep(task, name, restored)
            row = []
            for candidate in (degraded, restored):
                a, b = clean.astype(np.float64) / 255, candidate.astype(np.float64) / 255
                row += [
                    peak_signal_noise_ratio(a, b, data_range=1),
                    structural_similarity(a, b, data_range=1, channel_axis=-1),
                ]
            rows.append(row)
        yield Score(task, len(rows), *np.mean(rows, axis=0).tolist())
