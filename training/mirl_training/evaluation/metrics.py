"""Score one image by PSNR and SSIM.

Both are scikit-image's on RGB, data range 1, of images cropped to a multiple of 16. The result is rounded to
8 bits, as the file is that a user gets. MIR-L's code does not round, which at 38 dB is worth 0.03 dB, at 30
dB less than 0.01.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mirl_training.data.degradations import Image

Pixels = NDArray[np.uint8]
CROP = 16  # the sides of test images are multiples of it
HIGHEST_PSNR = 60.0  # dB that an image counts for at most: a clean one may come back without any error


@dataclass(frozen=True)
class Triple:
    """Hold one image of a test set.

    Attributes:
        name: Name of the image's file, without its suffix.
        degraded: (H, W, 3) uint8.
        clean: (H, W, 3) uint8.
    """

    name: str
    degraded: Pixels
    clean: Pixels


@dataclass(frozen=True)
class ImageScore:
    """Hold PSNR (dB) and SSIM of one image, before (degraded) and after (restored).

    Attributes:
        name: Name of the image.
        input_psnr: PSNR before.
        input_ssim: SSIM before.
        psnr: PSNR after.
        ssim: SSIM after.
    """

    name: str
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float


def to_levels(image: Image) -> Pixels:
    """Return an image in [0, 1] rounded to 8 bits."""
    return np.rint(image * 255).astype(np.uint8)


def score_image(triple: Triple, restored: Pixels) -> ImageScore:
    """Score one restored image.

    Args:
        triple: The image.
        restored: (H, W, 3) uint8. Its PSNR counts HIGHEST_PSNR at most.
    """
    before, after = (_psnr_and_ssim(image, triple.clean) for image in (triple.degraded, restored))
    return ImageScore(triple.name, *before, *after)


def _psnr_and_ssim(image: Pixels, clean: Pixels) -> tuple[float, float]:
    if np.array_equal(image, clean):
        return HIGHEST_PSNR, 1.0
    exact, candidate = (x.astype(np.float64) / 255 for x in (clean, image))
    psnr = float(peak_signal_noise_ratio(exact, candidate, data_range=1))
    ssim = float(structural_similarity(exact, candidate, data_range=1, channel_axis=-1))
    return min(HIGHEST_PSNR, psnr), ssim
