"""List the test sets: the published ones, one pure degradation each, and photos as people have them.

Random draws are seeded per image. Noise is rounded to 8 bits, where MIR-L's code cuts it off, which makes it
half a level darker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mirl_sparse.photos import read_image
from mirl_training.data.degradations import (
    Image,
    NoiseKind,
    add_camera_noise,
    add_heavy_rain,
    add_jpeg,
    add_noise,
    add_webp,
    grey,
)
from mirl_training.data.folders import PAIR_SUFFIXES, DataError, list_images, list_pairs
from mirl_training.data.graphics import draw_graphics
from mirl_training.evaluation.metrics import CROP, Pixels, Triple, to_levels

Sets = dict[str, Callable[[], Iterator[Triple]]]  # by name, what yields the images of a test set
_Degradation = Callable[[Image, np.random.Generator], Image]


def _crop(image: Pixels) -> Pixels:
    """Return the middle of an image, its sides multiples of CROP."""
    top, left = (side % CROP // 2 for side in image.shape[:2])
    height, width = (side // CROP * CROP for side in image.shape[:2])
    return image[top : top + height, left : left + width]


def _read(path: Path) -> Pixels:
    image = read_image(path)
    if min(image.shape[:2]) < CROP:
        raise DataError(
            f"{path}: is smaller than {CROP}x{CROP} pixels; expected test images of at least that"
        )
    return image


def _names(paths: Sequence[Path]) -> list[str]:
    """Return what the files of a folder are called: without suffixes, unless two would have one name."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [path.name for path in paths]


def _made(
    photos: Path, degrade: _Degradation, seed: int, prepare: _Degradation | None = None
) -> Iterator[Triple]:
    """Yield every photo of a folder, prepared, beside the degraded one."""
    paths = list_images(photos)
    for i, (path, name) in enumerate(zip(paths, _names(paths), strict=True)):
        rng = np.random.default_rng([seed, i])
        clean = _crop(_read(path)).astype(np.float32) / np.float32(255)
        if prepare is not None:
            clean = prepare(clean, rng)
        yield Triple(name, to_levels(degrade(clean, rng)), to_levels(clean))


def _pairs(folder: Path, suffix: str) -> Iterator[Triple]:
    pairs = list_pairs(folder, suffix)
    for (degraded, clean), name in zip(pairs, _names([pair[0] for pair in pairs]), strict=True):
        images = _read(degraded), _read(clean)
        if images[0].shape != images[1].shape:
            sizes = (f"{image.shape[1]}x{image.shape[0]}" for image in images)
            raise DataError(f"{degraded}: is {' beside '.join(sizes)} of {clean}; expected equal sizes")
        yield Triple(name, *map(_crop, images))


def standard_sets(root: Path) -> Sets:
    """Return the published test sets that a folder holds, by name.

    Args:
        root: Folder with ``denoise/CBSD68`` or, as MIR-L's code names it, ``denoise/BSD68`` (with noise, and
            as JPEG of quality 10 and 40), ``derain/Rain100L`` and ``dehaze/SOTS``; each may be missing.
    """
    photos = _clean_photos(root)
    sets: Sets = {}
    if photos is not None:
        for sigma in (15, 25, 50):
            sets[f"CBSD68 noise {sigma}"] = partial(_made, photos, _noise(sigma), sigma)
        for quality in (10, 40):
            sets[f"CBSD68 JPEG {quality}"] = partial(_made, photos, _jpeg(quality), 0)
    if (root / "derain/Rain100L").is_dir():
        sets["Rain100L"] = partial(_pairs, root / "derain/Rain100L", PAIR_SUFFIXES["rain"])
    if (root / "dehaze/SOTS").is_dir():
        sets["SOTS outdoor"] = partial(_pairs, root / "dehaze/SOTS", PAIR_SUFFIXES["haze"])
    return sets


def _clean_photos(root: Path) -> Path | None:
    return next(
        (folder for name in ("CBSD68", "BSD68") if (folder := root / "denoise" / name).is_dir()), None
    )


def _noise(sigma: float) -> _Degradation:
    return lambda image, rng: add_noise(image, sigma, rng)


def _camera_noise(sigma: float, kind: NoiseKind, shot: float = 0) -> _Degradation:
    return lambda image, rng: add_camera_noise(image, sigma, kind, shot, rng)


def _jpeg(quality: int) -> _Degradation:
    return lambda image, _: add_jpeg(image, quality)


def _noise_then_jpeg(sigma: float, quality: int) -> _Degradation:
    return lambda image, rng: add_jpeg(add_noise(image, sigma, rng), quality)


def _as_it_is(image: Image, rng: np.random.Generator) -> Image:
    return image


def _grey(image: Image, rng: np.random.Generator) -> Image:
    return grey(image)


def _graphics(image: Image, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    return draw_graphics(height, width, rng)


# By name: what degrades a photo, and what prepares the photo that must come back.
_EVERYDAY: dict[str, tuple[_Degradation, _Degradation | None]] = {
    "clean": (_as_it_is, None),
    "clean, grey": (_as_it_is, _grey),
    "clean, text and shapes": (_as_it_is, _graphics),
    "grey, noise 25": (_camera_noise(25, "common"), _grey),
    "noise 25, same in all channels": (_camera_noise(25, "common"), None),
    "noise 20 of a sensor": (_camera_noise(20, "mosaic", shot=0.5), None),
    "noise 15, then JPEG 90": (_noise_then_jpeg(15, 90), None),
    "noise 10, then JPEG 75": (_noise_then_jpeg(10, 75), None),
    "JPEG 75": (_jpeg(75), None),
    "JPEG 30": (_jpeg(30), None),
    "WebP 50": (lambda image, _: add_webp(image, 50), None),
    "heavy rain": (lambda image, rng: add_heavy_rain(image, rng, 18), None),
}


def everyday_sets(root: Path) -> Sets:
    """Return test sets of photos as people have them, made from a folder of clean photos, by name.

    JPEG has colour at half resolution (4:2:0). Every draw is seeded by the set and the photo's place in the
    folder.

    Args:
        root: A folder of clean photos, or one that holds them as ``denoise/CBSD68``. Pairs of real noise in
            ``denoise_real/PolyU`` join them.
    """
    sets: Sets = {}
    photos = _clean_photos(root)
    if photos is None and root.is_dir() and not (root / "denoise_real").is_dir():
        photos = root
    if photos is not None:
        for seed, (name, (degrade, prepare)) in enumerate(_EVERYDAY.items()):
            sets[name] = partial(_made, photos, degrade, 1000 + seed, prepare)
    if (root / "denoise_real/PolyU").is_dir():
        sets["real sensor noise"] = partial(_pairs, root / "denoise_real/PolyU", PAIR_SUFFIXES["real"])
    return sets


SUITES: Mapping[str, Callable[[Path], Sets]] = {"standard": standard_sets, "everyday": everyday_sets}
