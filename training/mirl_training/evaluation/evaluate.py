"""Score a restorer on test sets: PSNR and SSIM of every image, their means, and the worst image.

Two suites: `standard_sets` are the published sets, one pure degradation each; `everyday_sets` are photos as people have
them, made from any folder of clean photos.

PSNR and SSIM are scikit-image's on RGB, data range 1, of images cropped to a multiple of 16. Random draws are seeded per image.
The result is rounded to 8 bits, as the file is that a user gets; MIR-L's code does not round, which at 38 dB is worth
0.03 dB, at 30 dB less than 0.01. Noise is rounded, too, where theirs is cut off, which makes it half a level darker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mirl_sparse.photos.images import read_image
from mirl_training.data.degradations import (
    Image,
    add_camera_noise,
    add_heavy_rain,
    add_jpeg,
    add_noise,
    add_webp,
    grey,
)
from mirl_training.data.graphics import draw_graphics
from mirl_training.data.photos import DataError, list_images, list_pairs

Pixels = NDArray[np.uint8]
CROP = 16
HIGHEST = 60.0  # dB that an image counts for at most: a clean one may come back without any error


@dataclass(frozen=True)
class Triple:
    """One image of a test set: its name, the degraded and the clean version, each (H, W, 3) uint8."""

    name: str
    degraded: Pixels
    clean: Pixels


Sets = dict[str, Callable[[], Iterator[Triple]]]
Harm = Callable[[Image, np.random.Generator], Image]


@dataclass(frozen=True)
class ImageScore:
    """PSNR (dB) and SSIM of one image, before (degraded) and after (restored)."""

    name: str
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Score:
    """Means over one test set, in dB and SSIM, and the image that gained least (of clean photos: that lost most).

    ``worst_change`` is that image's PSNR after minus before; ``worst_psnr`` the one after.
    """

    task: str
    images: int
    input_psnr: float
    input_ssim: float
    psnr: float
    ssim: float
    worst: str
    worst_psnr: float
    worst_change: float


def _crop(image: Pixels) -> Pixels:
    """Return the middle of an image, its sides multiples of CROP."""
    top, left = (side % CROP // 2 for side in image.shape[:2])
    height, width = (side // CROP * CROP for side in image.shape[:2])
    return image[top : top + height, left : left + width]


def _read(path: Path) -> Pixels:
    image = _crop(read_image(path))
    if 0 in image.shape:
        raise DataError(
            f"{path}: is smaller than {CROP}x{CROP} pixels; expected test images of at least that"
        )
    return image


def _levels(image: Image) -> Pixels:
    return np.rint(image * 255).astype(np.uint8)


def _made(photos: Path, harm: Harm, seed: int, prepare: Harm | None = None) -> Iterator[Triple]:
    """Yield every photo of a folder, prepared, beside what ``harm`` makes of it."""
    for i, path in enumerate(list_images(photos)):
        rng = np.random.default_rng([seed, i])
        clean = _read(path).astype(np.float32) / np.float32(255)
        if prepare is not None:
            clean = prepare(clean, rng)
        yield Triple(path.stem, _levels(harm(clean, rng)), _levels(clean))


def _pairs(folder: Path, suffix: str) -> Iterator[Triple]:
    for degraded, clean in list_pairs(folder, suffix):
        triple = Triple(degraded.stem, _read(degraded), _read(clean))
        if triple.degraded.shape != triple.clean.shape:
            sizes = (f"{i.shape[1]}x{i.shape[0]}" for i in (triple.degraded, triple.clean))
            raise DataError(f"{degraded}: is {' beside '.join(sizes)} of {clean}; expected equal sizes")
        yield triple


def standard_sets(root: Path) -> Sets:
    """Return the published test sets found below ``root``, by name.

    ``denoise/CBSD68`` or, as MIR-L's code names it, ``denoise/BSD68`` (with noise, and as JPEG of quality 10 and 40),
    ``derain/Rain100L`` and ``dehaze/SOTS``.
    """
    photos = _clean_photos(root)
    sets: Sets = {}
    if photos is not None:
        for sigma in (15, 25, 50):
            sets[f"CBSD68 noise {sigma}"] = partial(_made, photos, _noise(sigma), sigma)
        for quality in (10, 40):
            sets[f"CBSD68 JPEG {quality}"] = partial(_made, photos, _jpeg(quality), 0)
    if (root / "derain/Rain100L").is_dir():
        sets["Rain100L"] = partial(_pairs, root / "derain/Rain100L", "rainy")
    if (root / "dehaze/SOTS").is_dir():
        sets["SOTS outdoor"] = partial(_pairs, root / "dehaze/SOTS", "hazy")
    return sets


def _clean_photos(root: Path) -> Path | None:
    return next(
        (folder for name in ("CBSD68", "BSD68") if (folder := root / "denoise" / name).is_dir()), None
    )


def _noise(sigma: float) -> Harm:
    return lambda image, rng: add_noise(image, sigma, rng)


def _jpeg(quality: int) -> Harm:
    return lambda image, _: add_jpeg(image, quality)


def _noise_then_jpeg(sigma: float, quality: int) -> Harm:
    return lambda image, rng: add_jpeg(add_noise(image, sigma, rng), quality)


def _as_it_is(image: Image, rng: np.random.Generator) -> Image:
    return image


def _grey(image: Image, rng: np.random.Generator) -> Image:
    return grey(image)


def _graphics(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    return draw_graphics(height, width, rng)


# Name: what is done to a clean photo, and before that to what must come back.
_EVERYDAY: dict[str, tuple[Harm, Harm | None]] = {
    "clean": (_as_it_is, None),
    "clean, grey": (_as_it_is, _grey),
    "clean, text and shapes": (_as_it_is, _graphics),
    "grey, noise 25": (lambda image, rng: add_camera_noise(image, 25, "common", 0, rng), _grey),
    "noise 25, same in all channels": (
        lambda image, rng: add_camera_noise(image, 25, "common", 0, rng),
        None,
    ),
    "noise 20 of a sensor": (lambda image, rng: add_camera_noise(image, 20, "mosaic", 0.5, rng), None),
    "noise 15, then JPEG 90": (_noise_then_jpeg(15, 90), None),
    "noise 10, then JPEG 75": (_noise_then_jpeg(10, 75), None),
    "JPEG 75": (_jpeg(75), None),
    "JPEG 30": (_jpeg(30), None),
    "WebP 50": (lambda image, _: add_webp(image, 50), None),
    "heavy rain": (lambda image, rng: add_heavy_rain(image, rng, 18), None),
}


def everyday_sets(root: Path) -> Sets:
    """Return test sets as people's photos are, made from a folder of clean photos, by name.

    ``root`` is such a folder, or holds one as ``denoise/CBSD68``; pairs of real noise in ``denoise_real/PolyU`` join them.
    JPEG has colour at half resolution (4:2:0). Every draw is seeded by the row and the photo's place in the folder.
    """
    sets: Sets = {}
    photos = _clean_photos(root)
    if photos is None and root.is_dir() and not (root / "denoise_real").is_dir():
        photos = root
    if photos is not None:
        for seed, (name, (harm, prepare)) in enumerate(_EVERYDAY.items()):
            sets[name] = partial(_made, photos, harm, 1000 + seed, prepare)
    if (root / "denoise_real/PolyU").is_dir():
        sets["real sensor noise"] = partial(_pairs, root / "denoise_real/PolyU", "noisy")
    return sets


SUITES: Mapping[str, Callable[[Path], Sets]] = {"standard": standard_sets, "everyday": everyday_sets}


def score_image(triple: Triple, restored: Pixels) -> ImageScore:
    """Score one restored image; its PSNR counts HIGHEST at most."""
    clean, row = triple.clean.astype(np.float64) / 255, []
    for image in (triple.degraded, restored):
        if np.array_equal(image, triple.clean):
            row += [HIGHEST, 1.0]
            continue
        candidate = image.astype(np.float64) / 255
        row += [
            min(HIGHEST, float(peak_signal_noise_ratio(clean, candidate, data_range=1))),
            float(structural_similarity(clean, candidate, data_range=1, channel_axis=-1)),
        ]
    return ImageScore(triple.name, *row)


def evaluate(
    restore: Callable[[Pixels], Pixels],
    sets: Sets,
    keep: Callable[[str, Triple, Pixels, ImageScore], None] | None = None,
) -> Iterator[Score]:
    """Score ``restore`` on test sets, one after the other.

    Args:
        restore: takes and returns (H, W, 3) uint8.
        sets: of `standard_sets` or `everyday_sets`.
        keep: is given each set's name, image, restored image and its score.

    Yields:
        The score of each set.
    """
    for task, images in sets.items():
        scores = []
        for triple in images():
            restored = restore(triple.degraded)
            scores.append(score_image(triple, restored))
            if keep:
                keep(task, triple, restored, scores[-1])
        worst = min(scores, key=lambda s: s.psnr - s.input_psnr)
        columns = zip(*((s.input_psnr, s.input_ssim, s.psnr, s.ssim) for s in scores), strict=True)
        before, before_ssim, after, after_ssim = (sum(column) / len(scores) for column in columns)
        yield Score(
            task,
            len(scores),
            before,
            before_ssim,
            after,
            after_ssim,
            worst.name,
            worst.psnr,
            worst.psnr - worst.input_psnr,
        )
