"""Degrade photos: noise, rain, haze, compression, and what social networks do.

Images are float32 (H, W, 3), RGB in [0, 1]. Every function returns a new image, clipped and rounded
to the 256 levels of an 8-bit file.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFilter

Image = NDArray[np.float32]
NoiseKind = Literal["white", "common", "per_channel", "mosaic", "smooth"]
Subsampling = Literal["4:2:0", "4:2:2", "4:4:4"]


def quantise(image: Image) -> Image:
    """Clip to [0, 1] and round to multiples of 1/255, as an 8-bit file stores it."""
    return (np.rint(np.clip(image, 0, 1) * 255) / 255).astype(np.float32)


def add_noise(image: Image, sigma: float, rng: np.random.Generator) -> Image:
    """Add white Gaussian noise of standard deviation ``sigma`` (in 1/255), clipped to 8 bits."""
    return add_camera_noise(image, sigma, "white", 0, rng)


def noise_common(shape: tuple[int, ...], rng: np.random.Generator) -> Image:
    """Draw white noise (H, W, 3) of deviation 1 that is the same in all channels, as a grey photo has it."""
    return np.repeat(rng.standard_normal((*shape[:2], 1), np.float32), 3, axis=2)


def noise_per_channel(shape: tuple[int, ...], rng: np.random.Generator) -> Image:
    """Draw white noise (H, W, 3) whose deviation differs between channels, 0.2 to 1; one of them has 1."""
    deviation = rng.uniform(0.2, 1, 3).astype(np.float32)
    return rng.standard_normal(shape, np.float32) * (deviation / deviation.max())


def noise_mosaic(shape: tuple[int, ...], rng: np.random.Generator) -> Image:
    """Draw noise (H, W, 3) of deviation 1 as a camera makes it.

    White noise lies behind a Bayer filter (RGGB). Missing colours are interpolated between neighbours, which
    correlates the noise.
    """
    height, width = shape[:2]
    sites = rng.standard_normal((height + 2, width + 2), np.float32)
    y, x = np.mgrid[0 : height + 2, 0 : width + 2]
    red, blue = (y % 2 == 0) & (x % 2 == 0), (y % 2 == 1) & (x % 2 == 1)
    planes = []
    for sampled, diagonal in ((red, True), (~(red | blue), False), (blue, True)):
        plane = np.where(sampled, sites, np.float32(0))
        across = plane[:, :-2] + plane[:, 2:]
        along = plane[:-2, 1:-1] + plane[2:, 1:-1] + across[1:-1]
        total = plane[1:-1, 1:-1] + along / (2 if diagonal else 4)
        planes.append(total + (across[:-2] + across[2:]) / 4 if diagonal else total)
    noise = np.stack(planes, -1)
    return (noise / np.float32(noise.std() + 1e-6)).astype(np.float32)


def noise_smooth(shape: tuple[int, ...], rng: np.random.Generator) -> Image:
    """Draw noise (H, W, 3) of deviation 1 with grains of 1.2 to 3 pixels, as an enlarged photo has."""
    grain = rng.uniform(1.2, 3)
    size = max(2, round(shape[0] / grain)), max(2, round(shape[1] / grain))
    coarse = rng.standard_normal((3, *size), np.float32)
    planes = [
        Pillow.fromarray(plane).resize((shape[1], shape[0]), Pillow.Resampling.BICUBIC) for plane in coarse
    ]
    noise = np.stack([np.asarray(plane) for plane in planes], -1)
    return (noise / np.float32(noise.std() + 1e-6)).astype(np.float32)


def noise_white(shape: tuple[int, ...], rng: np.random.Generator) -> Image:
    """Draw white noise (H, W, 3) of deviation 1, independent in each channel."""
    return rng.standard_normal(shape, np.float32)


NOISES: dict[NoiseKind, Callable[[tuple[int, ...], np.random.Generator], Image]] = {
    "white": noise_white,
    "common": noise_common,
    "per_channel": noise_per_channel,
    "mosaic": noise_mosaic,
    "smooth": noise_smooth,
}


def add_camera_noise(
    image: Image, sigma: float, kind: NoiseKind, shot: float, rng: np.random.Generator
) -> Image:
    """Add noise of one of the ``NOISES``, clipped to 8 bits.

    Args:
        image: Clean photo (H, W, 3) in [0, 1].
        sigma: Standard deviation in 1/255 at middle grey (0.5).
        kind: A key of ``NOISES``.
        shot: Share of the variance at middle grey that grows with the light (photon noise), 0 to 1. The rest
            is the same everywhere (read noise): a Poisson-Gaussian model (Foi et al., IEEE TIP 2008).
        rng: Source of the draw.
    """
    noise = NOISES[kind](image.shape, rng) * np.float32(sigma / 255)
    if shot > 0:
        light = image.mean(axis=2, keepdims=True) if kind == "common" else image
        noise = noise * np.sqrt(np.float32(1 - shot) + np.float32(2 * shot) * light)
    return quantise(image + noise)


def rain_streaks(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a layer (H, W) of light streaks in [0, 1].

    All streaks of an image have about one direction, as wind gives it. Their lengths, widths and brightness
    vary.
    """
    layer = np.zeros((height, width), np.float32)
    angle = rng.normal(0, 0.3)
    length_scale, width_scale = rng.uniform(10, 36), rng.uniform(0.5, 0.9)
    for _ in range(max(1, rng.poisson(height * width * rng.uniform(0.002, 0.007)))):
        length = min(length_scale * rng.lognormal(0, 0.5), 120)  # pixels, from end to end
        sigma = width_scale * rng.uniform(0.7, 1.5)  # pixels, across
        tilt = angle + rng.normal(0, 0.02)
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        reach = int(0.75 * length) + 1
        y0, y1 = max(0, int(cy) - reach), min(height, int(cy) + reach + 1)
        side = int(reach * abs(np.sin(tilt)) + 3 * sigma) + 1
        x0, x1 = max(0, int(cx) - side), min(width, int(cx) + side + 1)
        dy = np.arange(y0, y1, dtype=np.float32)[:, None] - np.float32(cy)
        dx = np.arange(x0, x1, dtype=np.float32)[None, :] - np.float32(cx)
        along = (dy * np.float32(np.cos(tilt)) + dx * np.float32(np.sin(tilt))) / np.float32(length / 2)
        across = (dx * np.float32(np.cos(tilt)) - dy * np.float32(np.sin(tilt))) / np.float32(sigma)
        brightness = np.float32(rng.uniform(0.1, 1) ** 1.5)
        layer[y0:y1, x0:x1] += brightness * np.exp(-0.5 * across**2 - along**4)  # soft ends
    return np.minimum(layer, 1)


def add_rain(image: Image, rng: np.random.Generator, psnr: float | None = None) -> Image:
    """Add light streaks so that the result is ``psnr`` dB from the clean image.

    Clipping may leave a bright image nearer to the clean one than asked.

    Args:
        image: Clean photo (H, W, 3) in [0, 1].
        rng: Source of the draw.
        psnr: PSNR of the result, in dB. None draws it from a normal distribution of mean 25.5 and deviation
            3.5 dB, as the input of Rain100L has, within 18 to 36.
    """
    target = np.clip(rng.normal(25.5, 3.5), 18, 36) if psnr is None else psnr
    streaks = rain_streaks(image.shape[0], image.shape[1], rng)[..., None]
    strength, target_error = 0.5, 10 ** (-target / 20)
    for _ in range(4):  # clipping makes the error sublinear in the strength
        error = np.sqrt(np.mean((np.clip(image + strength * streaks, 0, 1) - image) ** 2))
        strength = float(np.clip(strength * target_error / max(error, 1e-6), 0.02, 1.5))
    return quantise(image + np.float32(strength) * streaks)


def drops(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a layer (H, W) of heavy rain in [0, 1].

    It is made of sparse points that are smeared along one direction. Length (8 to 60 pixels), width (0.4 to
    2), direction (up to 50 degrees off the vertical), density and brightness are drawn per layer.
    """
    length, sigma, angle = rng.uniform(8, 60), rng.uniform(0.4, 2.0), rng.uniform(-0.87, 0.87)
    reach = int(length / 2) + 1
    points = (
        rng.random((height + 2 * reach, width + 2 * reach), np.float32) < rng.uniform(0.02, 0.12) / length
    )
    bright = points * rng.uniform(0.4, 1, points.shape).astype(np.float32)
    layer = np.zeros((height, width), np.float32)
    for step in range(-reach, reach + 1):
        dy, dx = round(step * np.cos(angle)), round(step * np.sin(angle))
        window = bright[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
        layer += window * np.float32(np.exp(-((2 * step / length) ** 4)))
    blurred = Pillow.fromarray(np.minimum(layer * 255, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(sigma)
    )
    layer = np.asarray(blurred, np.float32)
    return layer / max(np.float32(np.percentile(layer, 99.8)), np.float32(1))


def add_heavy_rain(image: Image, rng: np.random.Generator, psnr: float) -> Image:
    """Add rain from light to a downpour.

    There are one to three layers, each of streaks (`rain_streaks`) or `drops`. A downpour often has mist as
    well: a veil of one airlight, 0.5 to 1, that hides 3% to 30% and is uneven across the image.

    Args:
        image: Clean photo (H, W, 3) in [0, 1].
        rng: Source of the draw.
        psnr: PSNR of the result, in dB, about 12 to 36.
    """
    height, width = image.shape[:2]
    mist = float(rng.uniform(0.03, 0.3)) if psnr < 24 and rng.random() < 0.6 else 0.0
    layers = [
        rng.uniform(0.4, 1) * (drops if rng.random() < 0.6 else rain_streaks)(height, width, rng)
        for _ in range(rng.integers(1, 4))
    ]
    veil = np.float32(mist) * np.clip(1 + 0.4 * _blobs(height, width, rng), 0, 3)[..., None]
    airlight = np.float32(rng.uniform(0.5, 1))
    rain = np.minimum(sum(layers), 1.2).astype(np.float32)[..., None]
    tint = 1 - rng.uniform(0, 0.1, 3).astype(np.float32)
    strength, target_error = 0.5, 10 ** (-psnr / 20)
    for _ in range(5):  # clipping makes the error sublinear in the strength
        rainy = _veiled(image, veil, airlight) + np.float32(strength) * rain * tint
        error = np.sqrt(np.mean((np.clip(rainy, 0, 1) - image) ** 2))
        strength = float(np.clip(strength * target_error / max(error, 1e-6), 0.02, 1.5))
        # Mist alone may exceed what is asked for.
        veil = veil * np.float32(min(1.0, 1.2 * target_error / max(error, 1e-6)))
    return quantise(_veiled(image, veil, airlight) + np.float32(strength) * rain * tint)


def _veiled(image: Image, veil: NDArray[np.float32], airlight: np.float32) -> Image:
    return image * (1 - veil) + airlight * veil


def _blobs(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a smooth field (H, W) of mean 0 and deviation 1, its hills a fifth to a half of the image wide."""
    coarse = rng.standard_normal((int(rng.integers(3, 7)), int(rng.integers(3, 7)))).astype(np.float32)
    field = np.asarray(Pillow.fromarray(coarse).resize((width, height), Pillow.Resampling.BICUBIC))
    return (field - field.mean()) / np.float32(field.std() + 1e-6)


def add_haze(
    image: Image, depth: NDArray[np.floating], density: float, airlight: float | NDArray[np.floating]
) -> Image:
    """Add haze by Koschmieder's law, as SOTS has it.

    The result is ``t * image + (1 - t) * airlight`` with ``t = exp(-density * depth)``.

    Args:
        image: Clean photo (H, W, 3) in [0, 1].
        depth: Distance (H, W) from 0, in any unit.
        density: Extinction per unit of depth.
        airlight: The haze's colour in [0, 1], one number or (3,).
    """
    transmission = np.exp(-density * depth.astype(np.float32))[..., None]
    return quantise(image * transmission + np.asarray(airlight, np.float32) * (1 - transmission))


def add_fog(image: Image, rng: np.random.Generator, colour: float = 0) -> Image:
    """Add haze to a photo whose depth is not known.

    The depth is drawn: a plane, as the ground is seen, tilted at random, with far blobs in front of or behind
    it. Transmission and airlight are drawn as widely as SOTS has them.

    Args:
        image: Clean photo (H, W, 3) in [0, 1].
        rng: Source of the draw.
        colour: Largest difference of the airlight's channels, from 0 (grey, as in SOTS) to 1.
    """
    height, width = image.shape[:2]
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    tilt = rng.normal(0, 0.6)  # 0: farther away towards the top
    depth = rng.uniform(0, 1) * (np.cos(tilt) * (1 - y) + np.sin(tilt) * x)
    for _ in range(rng.integers(4)):
        cy, cx, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.1, 0.6)
        depth = depth + rng.normal(0, 0.15) * (1 - np.tanh(6 * (np.hypot(y - cy, x - cx) / radius - 1)))
    depth = depth - depth.min() + rng.uniform(0.3, 1)
    thickness = rng.uniform(0.2, 1.4) / depth.mean()
    airlight: float | NDArray[np.floating] = float(rng.uniform(0.7, 1))
    if colour:
        airlight = airlight * (1 - colour * rng.uniform(0, 1, 3))
    return add_haze(image, depth, float(thickness), airlight)


def add_jpeg(image: Image, quality: int, subsampling: Subsampling = "4:2:0") -> Image:
    """Save as a JPEG file and read it again.

    Args:
        image: Photo (H, W, 3) in [0, 1].
        quality: Pillow's quality, 1 to 95 (up to 100 where size does not matter).
        subsampling: "4:2:0" (colour at half resolution, as most cameras and networks write it), "4:2:2" or
            "4:4:4".
    """
    return _from_pillow(_jpeg(_to_pillow(image), quality, subsampling))


def add_webp(image: Image, quality: int) -> Image:
    """Save as a lossy WebP file of a quality from 1 to 100 and read it again."""
    file = io.BytesIO()
    _to_pillow(image).save(file, "WEBP", quality=quality, method=2)
    return _from_pillow(Pillow.open(file).convert("RGB"))


def rescale(image: Image, height: int, width: int) -> Image:
    """Resize to (height, width, 3) by Pillow's Lanczos filter."""
    return _from_pillow(_to_pillow(image).resize((width, height), Pillow.Resampling.LANCZOS))


def blur(image: Image, sigma: float) -> Image:
    """Blur by a Gaussian of a standard deviation in pixels."""
    return _from_pillow(_to_pillow(image).filter(ImageFilter.GaussianBlur(sigma)))


def grey(image: Image, tint: tuple[float, float, float] = (1, 1, 1)) -> Image:
    """Return the luma (ITU-R BT.601) in all three channels, each times its ``tint`` in [0, 1]."""
    luma = image @ np.array([0.299, 0.587, 0.114], np.float32)
    return quantise(luma[..., None] * np.array(tint, np.float32))


def add_jpeg_drawn(image: Image, rng: np.random.Generator) -> Image:
    """Save as a JPEG file of a quality drawn from 10 to 60, and read it again."""
    return add_jpeg(image, int(rng.integers(10, 61)))


def share(image: Image, rng: np.random.Generator) -> Image:
    """Degrade a photo as sharing it again and again does.

    One to three times it is made smaller, by up to half, or left at its size, and compressed as JPEG with a
    quality of 30 to 90. At the end it is brought back to its size.
    """
    size = image.shape[1], image.shape[0]
    filters = Pillow.Resampling.BILINEAR, Pillow.Resampling.BICUBIC, Pillow.Resampling.LANCZOS
    shared, scale = _to_pillow(image), 1.0
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.5:
            scale = max(0.5, scale * rng.uniform(0.6, 1))
            smaller = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
            shared = shared.resize(smaller, filters[rng.integers(3)])
        shared = _jpeg(shared, int(rng.integers(30, 91)))
    return _from_pillow(shared if shared.size == size else shared.resize(size, filters[rng.integers(3)]))


def _to_pillow(image: Image) -> Pillow.Image:
    return Pillow.fromarray(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8))


def _from_pillow(image: Pillow.Image) -> Image:
    return np.asarray(image, np.uint8).astype(np.float32) / np.float32(255)


def _jpeg(image: Pillow.Image, quality: int, subsampling: Subsampling = "4:2:0") -> Pillow.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return Pillow.open(file).convert("RGB")
