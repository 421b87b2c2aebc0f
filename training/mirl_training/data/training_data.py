"""Draw training batches, and hold the validation pairs, from folders of photos in MIR-L's layout.

A sample depends on the seed, the round, the step and its place in the batch alone. It never depends on what
was drawn before it or by which process. So an interrupted run goes on with the same batches, and so do
several processes that share them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mirl_training.data.degradations import Image
from mirl_training.data.folders import PAIR_SUFFIXES, DataError, Source, list_images, list_pairs
from mirl_training.data.photos import PhotoCache, Pixels, to_unit
from mirl_training.data.sampling import Sampler, generator
from mirl_training.data.scenes import SceneFinder
from mirl_training.data.tasks import degrade

if TYPE_CHECKING:
    from mirl_training.data.settings import DataSettings
    from mirl_training.runs.config import RunConfig

Pairs = dict[str, list[tuple[Tensor, Tensor]]]  # by task: (degraded, clean), each (1, 3, H, W) in [0, 1]
_VALIDATION_KEY = 2**31
_VALIDATION_SIDE = 192  # pixels each way, at most
_GIB = 2**30


class TrainingData:
    """Draw the batches of a run; scenes of the validation pairs are never drawn.

    Photos beyond the memory of the settings are decoded again whenever they are drawn. Of these only the size
    is checked before training.

    Args:
        config: The run's settings.
        root: The folder that the data paths of the settings start from.

    Attributes:
        config: The run's settings.
        digest: Digest of the names and sizes of the photos; 64 hexadecimal digits.

    Raises:
        DataError: A folder lacks photos, or a photo does not serve.
    """

    def __init__(self, config: RunConfig, root: Path) -> None:
        self.config = config
        every = _list_sources(config.data, root)
        _check_enough(every, config.data.validation_images)
        used = {config.data.source_of(task) for task in config.data.tasks}
        self._photos = PhotoCache(
            max(patch for _, _, patch in config.training.shapes), config.data.memory * _GIB
        )
        self._photos.fill([source for name in every if name in used for source in every[name]])
        self._held_back, self._sources = _hold_back(every, config.data.validation_images)
        self.digest = _digest(((name, source) for name in used for source in every[name]), root)
        self._sampler = Sampler(config, {name: len(sources) for name, sources in self._sources.items()})

    @property
    def steps_per_epoch(self) -> int:
        """Return how many batches an epoch has; see `Sampler.steps_per_epoch`."""
        return self._sampler.steps_per_epoch

    @property
    def unit(self) -> int:
        """Return the steps of what the settings count: 1, or an epoch's."""
        return self.steps_per_epoch if self.config.training.epochs else 1

    def steps_of_round(self, index: int) -> int:
        """Return how many steps a round trains; round 0 is the dense one."""
        return self.config.length_of_round(index) * self.unit

    def batch(self, round_index: int, step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
        """Return the batch of one step, or a process's equal share of it.

        Args:
            round_index: 0 for the dense round.
            step: Index of the step in the round, from 0.
            rank: Rank of the process, from 0.
            ranks: Number of processes that share the batch.

        Returns:
            (degraded, clean), each (B, 3, patch, patch) float32 in [0, 1].
        """
        size = self.config.training.shape(step, self.steps_of_round(round_index))[0]
        samples = [self._sample(round_index, step, place) for place in range(rank, size, ranks)]
        return _to_batch([s[0] for s in samples]), _to_batch([s[1] for s in samples])

    def validation(self, multiple: int = 8) -> Pairs:
        """Return the held-back pairs of each task, cropped in the middle to 192 pixels each way or less.

        Args:
            multiple: Number that the sides of the result are multiples of.
        """
        pairs: Pairs = {}
        for task in self.config.data.tasks:
            rng = generator(self.config.training.seed, _VALIDATION_KEY)
            recipe = self.config.data.recipes.get(task)
            pairs[task] = []
            for source in self._held_back[self.config.data.source_of(task)]:
                photo, target = self._photos.read(source)
                clean = to_unit(_middle(target, multiple))
                degraded = None if photo is None else to_unit(_middle(photo, multiple))
                if recipe is not None:
                    degraded, clean = recipe.pair(degraded, clean, None, rng)
                elif degraded is None:
                    degraded = degrade(clean, task, rng)
                pairs[task].append((_to_batch([degraded]), _to_batch([clean])))
        return pairs

    def _sample(self, round_index: int, step: int, place: int) -> tuple[Image, Image]:
        size = self.config.training.shape(step, self.steps_of_round(round_index))[1]
        rng = generator(self.config.training.seed, round_index, step, place)
        task, index = self._sampler.choose(round_index, step, place, rng)
        degraded, target = self._photos.read(self._sources[self.config.data.source_of(task)][index])
        if task in self.config.data.recipes:
            recipe, photo = self.config.data.recipes[task], None if degraded is None else to_unit(degraded)
            return recipe.pair(photo, to_unit(target), (size, size), rng)
        y = rng.integers(target.shape[0] - size + 1)
        x = rng.integers(target.shape[1] - size + 1)
        flips, turns = int(rng.integers(2)), int(rng.integers(4))

        def patch(image: Pixels) -> Image:
            crop = image[y : y + size, x : x + size]
            return to_unit(np.rot90(crop[:, ::-1] if flips else crop, turns))

        clean = patch(target)
        return degrade(clean, task, rng) if degraded is None else patch(degraded), clean


def _list_sources(data: DataSettings, root: Path) -> dict[str, list[Source]]:
    sources = {"clean": [Source(None, path) for folder in data.clean for path in list_images(root / folder)]}
    for name, suffix in PAIR_SUFFIXES.items():
        folders: tuple[str, ...] = getattr(data, name)
        sources[name] = [Source(*pair) for folder in folders for pair in list_pairs(root / folder, suffix)]
    return sources


def _check_enough(every: dict[str, list[Source]], held_back: int) -> None:
    for name, sources in every.items():
        if sources and len(sources) <= held_back:
            raise DataError(
                f"data.{name} has {len(sources)} images; expected more than validation_images ({held_back})"
            )


def _hold_back(
    every: dict[str, list[Source]], count: int
) -> tuple[dict[str, list[Source]], dict[str, list[Source]]]:
    """Return the sources held back for validation, and those to train on, by their kind."""
    scenes = SceneFinder()
    held_back = {name: scenes.last(sources, count) for name, sources in every.items()}
    of_all_kinds = [source for sources in held_back.values() for source in sources]
    trained = {name: scenes.without(sources, of_all_kinds) for name, sources in every.items()}
    for name, sources in trained.items():
        if every[name] and not sources:
            raise DataError(f"data.{name} shows no scene but those held back; expected more than {count}")
    return held_back, trained


def _digest(sources: Iterable[tuple[str, Source]], root: Path) -> str:
    listed = [
        (name, *(path and (os.path.relpath(path, root), path.stat().st_size) for path in source))
        for name, source in sources
    ]
    return sha256(repr(sorted(listed, key=repr)).encode()).hexdigest()


def _middle(image: Pixels, multiple: int) -> Pixels:
    height, width = (min(_VALIDATION_SIDE, side // multiple * multiple) for side in image.shape[:2])
    y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[y : y + height, x : x + width]


def _to_batch(images: list[Image]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))
