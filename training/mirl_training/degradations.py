"""What harms a photo: noise, rain, haze, and what social networks do to it.

Images are float32 (H, W, 3), RGB in [0, 1]; every function returns a new one, clipped and rounded
to the 256 levels of the file that a user would have.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

Image = NDArray[np.float32]


def quantise(image: Image) -> Image:
    """Clip to [0, 1] and round to multiples of 1/255, as an 8-bit file stores it."""
    return (np.rint(np.clip(image, 0, 1) * 255) / 255).astype(np.float32)


def add_noise(image: Image, sigma: float, rng: np.random.Generator) -> Image:
    """White Gaussian noise of standard deviation ``sigma`` (in 1/255), clipped to 8 bits."""
    return quantise(image + rng.standard_normal(image.shape, np.float32) * np.float32(sigma / 255))


def rain_streaks(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A layer (H, W) of light streaks, at most 1: one direction per image, as wind gives, with
    lengths, widths and brightness that vary from streak to streak."""
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

    Without ``psnr`` it is drawn from a normal distribution of mean 25.5 and deviation 3.5 dB, as
    Rain100L's input has. Clipping may leave a bright image nearer to the clean one than asked.
    """
    target = np.clip(rng.normal(25.5, 3.5), 18, 36) if psnr is None else psnr
    streaks = rain_streaks(image.shape[0], image.shape[1], rng)[..., None]
    strength, wanted = 0.5, 10 ** (-target / 20)
    for _ in range(4):  # clipping makes the error sublinear in the strength
        error = np.sqrt(np.mean((np.clip(image + strength * streaks, 0, 1) - image) ** 2))
        strength = float(np.clip(strength * wanted / max(error, 1e-6), 0.02, 1.5))
    return quantise(image + np.float32(strength) * streaks)


def add_haze(image: Image, depth: NDArray[np.floating], density: float, airlight: float) -> Image:
    """Haze by Koschmieder's law, as SOTS has it: ``t * image + (1 - t) * airlight`` with the transmission
    ``t = exp(-density * depth)``; depth (H, W) from 0 in any unit, airlight in [0, 1]."""
    transmission = np.exp(-density * depth.astype(np.float32))[..., None]
    return quantise(image * transmission + np.float32(airlight) * (1 - transmission))


def add_fog(image: Image, rng: np.random.Generator) -> Image:
    """Haze over a photo whose depth is not known: a plane, as the ground is seen, tilted at random, and far
    blobs in front of or behind it; transmissions and airlight are drawn as widely as SOTS has them."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    tilt = rng.normal(0, 0.6)  # 0: farther away towards the top
    depth = rng.uniform(0, 1) * (np.cos(tilt) * (1 - y) + np.sin(tilt) * x)
    for _ in range(rng.integers(4)):
        cy, cx, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.1, 0.6)
        depth = depth + rng.normal(0, 0.15) * (1 - np.tanh(6 * (np.hypot(y - cy, x - cx) / radius - 1)))
    depth = depth - depth.min() + rng.uniform(0.3, 1)
    thickness = rng.uniform(0.2, 1.4) / depth.mean()
    return add_haze(image, depth, float(thickness), float(rng.uniform(0.7, 1)))


def add_jpeg(image: Image, quality: int) -> Image:
    """What a JPEG file of that quality (1 to 95, 4:2:0 colour as most cameras and networks write it) keeps."""
    return _from_pillow(_jpeg(_to_pillow(image), quality))


def add_jpeg_drawn(image: Image, rng: np.random.Generator) -> Image:
    """A JPEG of quality 10 to 60."""
    return add_jpeg(image, int(rng.integers(10, 61)))


def share(image: Image, rng: np.random.Generator) -> Image:
    """What happens to a photo that is shared again and again: one to three times it is made smaller, by up to half, or kept,
    and compressed with quality 30 to 90; at the end it is brought back to its size."""
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


def _jpeg(image: Pillow.Image, quality: int) -> Pillow.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return Pillow.open(file).convert("RGB")
