"""Recipes: how a training pair is made of a photo, step by step, with strengths and order drawn for each.

A recipe takes a clean photo, or a pair of a degraded and a clean one, prepares both alike (smaller, grey), then
degrades the degraded one further. A config lists recipes by name:

    recipes:
      thick noise, saved as JPEG:
        grey: 0.25
        steps:
          - {step: noise, sigma: [30, 60], kinds: [white, common]}
          - {step: jpeg, quality: [60, 95], probability: 0.5}
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mirl_training.data.degradations import (
    Image,
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

SourceName = Literal["clean", "rain", "haze", "real"]
SOURCES: tuple[SourceName, ...] = get_args(SourceName)
MARGIN = 16  # pixels: blocks of JPEG files start anywhere in a patch


def _span(value: Any) -> Any:
    return (value, value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _between(low: float, high: float) -> Any:
    """The type of a setting that is one number, or the two ends of a range to draw from, within [low, high]."""
    bound = Annotated[float, Field(ge=low, le=high)]
    return Annotated[tuple[bound, bound], BeforeValidator(_span)]


Probability = Annotated[float, Field(ge=0, le=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="after")
    def _ordered(self) -> Any:
        for name, value in self:
            if (
                isinstance(value, tuple)
                and len(value) == 2
                and isinstance(value[0], float)
                and value[0] > value[1]
            ):
                raise ValueError(f"{name} is {list(value)}; expected the lower end first")
        return self


class _Step(_Settings):
    """One degradation; ``probability`` is how often it happens at all."""

    probability: Probability = 1

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        raise NotImplementedError


def _draw(span: tuple[float, float], rng: np.random.Generator) -> float:
    return float(rng.uniform(*span))


class Noise(_Step):
    """`add_camera_noise` of a ``sigma`` (in 1/255) and one of ``kinds``. ``shot`` is the share of light-dependent
    variance. A grey photo gets the kind "common" in ``grey_common`` of all cases, whatever ``kinds`` are."""

    step: Literal["noise"]
    sigma: _between(0, 255)  # type: ignore[valid-type]
    kinds: tuple[Literal["white", "common", "per_channel", "mosaic", "smooth"], ...] = Field(
        ("white",), min_length=1
    )
    shot: _between(0, 1) = (0, 0)  # type: ignore[valid-type]
    grey_common: Probability = 0.8

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        kind = self.kinds[rng.integers(len(self.kinds))]
        if is_grey and rng.random() < self.grey_common:
            kind = "common"
        return add_camera_noise(image, _draw(self.sigma, rng), kind, _draw(self.shot, rng), rng)


class Jpeg(_Step):
    """One or more JPEG files of a ``quality``, one after the other, each with one of the ``subsamplings`` of colour."""

    step: Literal["jpeg"]
    quality: _between(1, 100)  # type: ignore[valid-type]
    subsamplings: tuple[Literal["4:2:0", "4:2:2", "4:4:4"], ...] = Field(("4:2:0",), min_length=1)
    times: _between(1, 10) = (1, 1)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        for _ in range(round(_draw(self.times, rng))):
            subsampling = self.subsamplings[rng.integers(len(self.subsamplings))]
            image = add_jpeg(image, round(_draw(self.quality, rng)), subsampling)
        return image


class Webp(_Step):
    """A lossy WebP file of a ``quality``."""

    step: Literal["webp"]
    quality: _between(1, 100)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        return add_webp(image, round(_draw(self.quality, rng)))


class Rain(_Step):
    """`add_heavy_rain`, ``psnr`` dB from the clean photo: 36 is light, 14 a downpour."""

    step: Literal["rain"]
    psnr: _between(5, 50)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        return add_heavy_rain(image, rng, _draw(self.psnr, rng))


class Fog(_Step):
    """`add_fog`: haze by a synthetic depth; ``colour`` is how far the airlight's channels differ, 0 to 1."""

    step: Literal["fog"]
    colour: _between(0, 1) = (0, 0)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        return add_fog(image, rng, 0 if is_grey else _draw(self.colour, rng))


class Blur(_Step):
    """A Gaussian blur of ``sigma`` pixels."""

    step: Literal["blur"]
    sigma: _between(0, 20)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        return blur(image, _draw(self.sigma, rng))


class Rescale(_Step):
    """Made smaller to ``scale`` of its size, then brought back: fine detail is lost."""

    step: Literal["rescale"]
    scale: _between(0.1, 1)  # type: ignore[valid-type]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        height, width = image.shape[:2]
        scale = _draw(self.scale, rng)
        smaller = rescale(image, max(1, round(height * scale)), max(1, round(width * scale)))
        return rescale(smaller, height, width)


class Share(_Step):
    """`share`: what social networks do to a photo, rescaling and JPEG again and again."""

    step: Literal["share"]

    def apply(self, image: Image, is_grey: bool, rng: np.random.Generator) -> Image:
        return share(image, rng)


Step = Annotated[Noise | Jpeg | Webp | Rain | Fog | Blur | Rescale | Share, Field(discriminator="step")]


class Recipe(_Settings):
    """How one kind of training pair is made.

    Attributes:
        source: folder that photos are drawn from: "clean" photos, or pairs of "rain", "haze" or "real" noise.
        smaller: probability that both photos are made smaller first, to 50% to 100%, which makes them sharper.
        grey: probability that both photos become grey (a fifth of them tinted, as sepia is).
        graphics: probability that drawn text and shapes take the place of a clean photo.
        shuffle: whether the steps come in a drawn order.
        steps: what degrades the photo; none of them leaves a clean photo that must stay as it is.
    """

    source: SourceName = "clean"
    smaller: Probability = 0
    grey: Probability = 0
    graphics: Probability = 0
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
        """Make a training pair.

        Args:
            degraded: degraded photo (H, W, 3) in [0, 1]; None where there is the clean one alone.
            clean: clean photo (H, W, 3) in [0, 1].
            size: (height, width) of a patch to cut out at random, at most (H, W); None for the whole photo.
            rng: source of every draw.

        Returns:
            (degraded, clean), each (height, width, 3) float32 in [0, 1], on 256 levels.
        """
        pair = [clean] if degraded is None else [degraded, clean]
        if size is not None:
            pair = self._cut(pair, size, rng)
        if rng.random() < self.graphics:
            height, width = pair[0].shape[:2]
            pair = [draw_graphics(height, width, rng)]
        is_grey = bool(rng.random() < self.grey)
        if is_grey:
            tint = (
                (1.0, float(rng.uniform(0.7, 1)), float(rng.uniform(0.5, 1)))
                if rng.random() < 0.2
                else (1.0,) * 3
            )
            pair = [grey(image, tint) for image in pair]
        bad, good = pair[0], pair[-1]
        for i in rng.permutation(len(self.steps)) if self.shuffle else range(len(self.steps)):
            if rng.random() < self.steps[i].probability:
                bad = self.steps[i].apply(bad, is_grey, rng)
        if size is not None:
            y, x = (int(rng.integers(have - want + 1)) for have, want in zip(good.shape, size, strict=False))
            if rng.random() < 0.5:  # as in a photo that was never cropped, blocks of JPEG begin at the corner
                y = x = 0
            bad, good = (image[y : y + size[0], x : x + size[1]] for image in (bad, good))
        return bad, good

    def _cut(self, pair: list[Image], size: tuple[int, int], rng: np.random.Generator) -> list[Image]:
        """Cut one place out of all photos, MARGIN larger than the patch where there is room, then turn and flip it."""
        have = pair[0].shape[:2]
        scale = float(rng.uniform(0.5, 1)) if rng.random() < self.smaller else 1.0
        scale = max(scale, *(want / side for want, side in zip(size, have, strict=True)))
        window = [min(side, round((want + MARGIN) / scale)) for want, side in zip(size, have, strict=True)]
        y, x = (int(rng.integers(side - w + 1)) for side, w in zip(have, window, strict=True))
        pair = [image[y : y + window[0], x : x + window[1]] for image in pair]
        if scale < 1:
            wanted = [max(want, round(w * scale)) for want, w in zip(size, window, strict=True)]
            pair = [rescale(image, *wanted) for image in pair]
        flips, turns = bool(rng.integers(2)), int(rng.integers(4))
        if size[0] != size[1]:
            turns = turns // 2 * 2
        return [np.ascontiguousarray(np.rot90(image[:, ::-1] if flips else image, turns)) for image in pair]
