"""Make training pairs by recipes: steps of degradation, with strengths and order drawn for each pair.

A recipe takes a clean photo, or a pair of a degraded and a clean one, prepares both alike (smaller, grey),
then degrades the degraded one further. A config lists recipes by name:

    recipes:
      thick noise, saved as JPEG:
        grey: 0.25
        steps:
          - {step: noise, sigma: [30, 60], kinds: [white, common]}
          - {step: jpeg, quality: [60, 95], probability: 0.5}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from mirl_training.data.degradations import (
    Image,
    NoiseKind,
    Subsampling,
    add_camera_noise,
    add_fog,
    add_heavy_rain,
    add_jpeg,
    add_webp,
    blur,
    grey,
    rescale,
    share,
)
from mirl_training.data.graphics import draw_graphics
from mirl_training.settings import Probability, Settings

SourceName = Literal["clean", "rain", "haze", "real"]
MARGIN = 16  # pixels: blocks of JPEG files start anywhere in a patch


def _span(value: Any) -> Any:
    return (value, value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _between(low: float, high: float) -> Any:
    """Return the type of a setting that is one number, or a range to draw from, within [low, high]."""
    bound = Annotated[float, Field(ge=low, le=high)]
    return Annotated[tuple[bound, bound], BeforeValidator(_span)]


class _Settings(Settings):
    @model_validator(mode="after")
    def _ordered(self) -> Any:
        for name, value in self:
            is_span = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], float)
            if is_span and value[0] > value[1]:
                raise ValueError(f"{name} is {list(value)}; expected the lower end first")
        return self


class _Step(_Settings):
    """Degrade a photo in one way; ``probability`` is how often this happens at all."""

    probability: Probability = 1

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        """Return the degraded photo; ``is_grey`` says that the recipe made it grey before."""
        raise NotImplementedError


def _draw(span: tuple[float, float], rng: np.random.Generator) -> float:
    return float(rng.uniform(*span))


class Noise(_Step):
    """Add noise as `add_camera_noise` does.

    Attributes:
        sigma: Standard deviation in 1/255.
        kinds: One of them is drawn.
        shot: Share of the variance that grows with the light.
        grey_common: Share of grey photos that get the kind "common", whatever ``kinds`` are.
    """

    step: Literal["noise"]
    sigma: _between(0, 255)  # type: ignore[valid-type]
    kinds: tuple[NoiseKind, ...] = Field(("white",), min_length=1)
    shot: _between(0, 1) = (0, 0)  # type: ignore[valid-type]
    grey_common: Probability = 0.8

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        """Return the degraded photo."""
        kind: NoiseKind = self.kinds[rng.integers(len(self.kinds))]
        if is_grey and rng.random() < self.grey_common:
            kind = "common"
        return add_camera_noise(image, _draw(self.sigma, rng), kind, _draw(self.shot, rng), rng)


class Jpeg(_Step):
    """Save as a JPEG file, ``times`` in a row, of a drawn ``quality`` and one of the ``subsamplings``."""

    step: Literal["jpeg"]
    quality: _between(1, 100)  # type: ignore[valid-type]
    subsamplings: tuple[Subsampling, ...] = Field(("4:2:0",), min_length=1)
    times: _between(1, 10) = (1, 1)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        """Return the degraded photo."""
        for _ in range(round(_draw(self.times, rng))):
            subsampling = self.subsamplings[rng.integers(len(self.subsamplings))]
            image = add_jpeg(image, round(_draw(self.quality, rng)), subsampling)
        return image


class Webp(_Step):
    """Save as a lossy WebP file of a drawn ``quality``."""

    step: Literal["webp"]
    quality: _between(1, 100)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        """Return the degraded photo."""
        return add_webp(image, round(_draw(self.quality, rng)))


class Rain(_Step):
    """Add rain as `add_heavy_rain` does, ``psnr`` dB from the clean photo: 36 is light, 14 a downpour."""

    step: Literal["rain"]
    psnr: _between(5, 50)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        """Return the degraded photo."""
        return add_heavy_rain(image, rng, _draw(self.psnr, rng))


class Fog(_Step):
    """Add haze as `add_fog` does; ``colour`` is how far the airlight's channels differ, 0 to 1."""

    step: Literal["fog"]
    colour: _between(0, 1) = (0, 0)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        """Return the degraded photo."""
        return add_fog(image, rng, 0 if is_grey else _draw(self.colour, rng))


class Blur(_Step):
    """Blur by a Gaussian of ``sigma`` pixels."""

    step: Literal["blur"]
    sigma: _between(0, 20)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        """Return the degraded photo."""
        return blur(image, _draw(self.sigma, rng))


class Rescale(_Step):
    """Make smaller, to ``scale`` of the size, then bring back: fine detail is lost."""

    step: Literal["rescale"]
    scale: _between(0.1, 1)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        """Return the degraded photo."""
        height, width = image.shape[:2]
        scale = _draw(self.scale, rng)
        smaller = rescale(image, max(1, round(height * scale)), max(1, round(width * scale)))
        return rescale(smaller, height, width)


class Share(_Step):
    """Degrade as `share` does: rescaling and JPEG again and again, as social networks do."""

    step: Literal["share"]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        """Return the degraded photo."""
        return share(image, rng)


Step = Annotated[Noise | Jpeg | Webp | Rain | Fog | Blur | Rescale | Share, Field(discriminator="step")]


class Recipe(_Settings):
    """Make one kind of training pair.

    Attributes:
        source: Folder that photos are drawn from: "clean" photos, or pairs of "rain", "haze" or "real" noise.
        smaller: Probability that both photos are made smaller first, to 50% to 100%, which makes them
            sharper.
        grey: Probability that both photos become grey (a fifth of them tinted, as sepia is).
        graphics: Probability that drawn text and shapes take the place of a clean photo.
        matte: Probability that the tones of grey and drawn photos are squeezed into a part of the range, as
            in scans and pale screenshots. Such photos look hazy, and are not.
        shuffle: True draws the order of the steps.
        steps: The steps that degrade the photo; no steps leave a clean photo that must stay as it is.
    """

    source: SourceName = "clean"
    smaller: Probability = 0
    grey: Probability = 0
    graphics: Probability = 0
    matte: Probability = 0
    shuffle: bool = False
    steps: tuple[Step, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.graphics and self.source != "clean":
            raise ValueError(
                f"graphics is {self.graphics} with source {self.source}; expected the source clean"
            )
        return self

    def pair(
        self, degraded: Image | None, clean: Image, size: tuple[int, int] | None, rng: np.random.Generator
    ) -> tuple[Image, Image]:
        """Return one training pair.

        Args:
            degraded: Degraded photo (H, W, 3) in [0, 1]; None where there is the clean one alone.
            clean: Clean photo (H, W, 3) in [0, 1].
            size: (height, width) of a patch to cut out at random, at most (H, W); None for the whole photo.
            rng: Source of every draw.

        Returns:
            (degraded, clean), each (height, width, 3) float32 in [0, 1], on 256 levels.
        """
        pair = [clean] if degraded is None else [degraded, clean]
        if size is not None:
            pair = self._cut(pair, size, rng)
        pair, is_grey = self._drawn_or_grey(pair, rng)
        bad, good = pair[0], pair[-1]
        for i in rng.permutation(len(self.steps)) if self.shuffle else range(len(self.steps)):
            if rng.random() < self.steps[i].probability:
                bad = self.steps[i].apply(bad, is_grey, rng)
        if size is not None:
            y, x = (int(rng.integers(have - want + 1)) for have, want in zip(good.shape, size, strict=False))
            if rng.random() < 0.5:  # blocks of JPEG begin at the corner, as in a photo that was never cropped
                y = x = 0
            bad, good = (image[y : y + size[0], x : x + size[1]] for image in (bad, good))
        return bad, good

    def _drawn_or_grey(self, pair: list[Image], rng: np.random.Generator) -> tuple[list[Image], bool]:
        """Return the photos, or graphics in their place, and whether they were made grey."""
        is_drawn = rng.random() < self.graphics
        if is_drawn:
            height, width = pair[0].shape[:2]
            pair = [draw_graphics(height, width, rng)]
        is_grey = bool(rng.random() < self.grey)
        if is_grey:
            tint = 1.0, 1.0, 1.0
            if rng.random() < 0.2:
                tint = 1.0, float(rng.uniform(0.7, 1)), float(rng.uniform(0.5, 1))
            pair = [grey(image, tint) for image in pair]
        if self.matte and (is_grey or is_drawn) and rng.random() < self.matte:
            low, high = float(rng.uniform(0, 0.5)), float(rng.uniform(0.5, 1))
            pair = [np.rint((low + (high - low) * image) * 255).astype(np.float32) / 255 for image in pair]
        return pair, is_grey

    def _cut(self, pair: list[Image], size: tuple[int, int], rng: np.random.Generator) -> list[Image]:
        """Cut one place out of all photos, MARGIN larger than the patch if there is room; turn it."""
        have = pair[0].shape[:2]
        scale = float(rng.uniform(0.5, 1)) if rng.random() < self.smaller else 1.0
        scale = max(scale, *(want / side for want, side in zip(size, have, strict=True)))
        window = [min(side, round((want + MARGIN) / scale)) for want, side in zip(size, have, strict=True)]
        y, x = (int(rng.integers(side - w + 1)) for side, w in zip(have, window, strict=True))
        pair = [image[y : y + window[0], x : x + window[1]] for image in pair]
        if scale < 1:
            height, width = (max(want, round(w * scale)) for want, w in zip(size, window, strict=True))
            pair = [rescale(image, height, width) for image in pair]
        flips, turns = bool(rng.integers(2)), int(rng.integers(4))
        if size[0] != size[1]:
            turns = turns // 2 * 2
        return [np.ascontiguousarray(np.rot90(image[:, ::-1] if flips else image, turns)) for image in pair]
