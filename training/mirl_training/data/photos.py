"""Training batches and validation pairs, from folders of photos in MIR-L's layout.

A sample depends on the seed, the round, the step and its place in the batch alone, never on what was drawn before it or by
whom, so an interrupted run goes on with the very batches it would have seen, and so do several processes that share them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mirl_sparse.errors import UserError
from mirl_sparse.photos.images import IMAGE_SUFFIXES, image_size, read_image
from mirl_training.data.degradations import (
    Image,
    add_fog,
    add_jpeg,
    add_jpeg_drawn,
    add_noise,
    add_rain,
    share,
)
from mirl_training.runs.config import RunConfig

Pixels = NDArray[np.uint8]
Source = tuple[
    Path | None, Path
]  # the degraded photo, None where it is made from the clean one; the clean one


class DataError(UserError):
    """A data folder that lacks what training needs; the message is one line for the user."""


def list_images(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give --data the root that holds it")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: holds no image")
    return paths


def list_pairs(folder: Path, suffix: str) -> list[tuple[Path, Path]]:
    """(degraded, clean) of ``input/NAME_<suffix>.*`` and ``target/NAME_gt.*``, sorted by name."""
    targets = {p.stem.removesuffix("_gt"): p for p in list_images(folder / "target")}
    pairs = []
    for path in list_images(folder / "input"):
        name = path.stem.removesuffix(f"_{suffix}")
        if name not in targets:
            raise DataError(f"{path}: has no {name}_gt.* in {folder / 'target'}")
        pairs.append((path, targets[name]))
    return pairs


def _unit(image: Pixels) -> Image:
    return image.astype(np.float32) / np.float32(255)


def _check_equal(source: Source, degraded: tuple[int, int], clean: tuple[int, int]) -> None:
    if degraded != clean:
        raise DataError(
            f"{source[0]}: is {degraded[1]}x{degraded[0]}, {source[1]} {clean[1]}x{clean[0]}; expected equal sizes"
        )


class _Photos:
    """Decoded photos of at least ``side`` pixels each way, kept in memory as far as ``budget`` bytes hold them."""

    def __init__(self, side: int, budget: float) -> None:
        self._side, self._left = side, budget
        self._kept: dict[Path, Pixels] = {}

    def read(self, source: Source) -> tuple[Pixels | None, Pixels]:
        degraded, clean = source
        first, second = None if degraded is None else self._read(degraded), self._read(clean)
        if first is not None:
            _check_equal(source, first.shape[:2], second.shape[:2])
        return first, second

    def fill(self, sources: list[Source]) -> None:
        """Read ahead until the memory is used up; of the others, check the size."""
        with ThreadPoolExecutor(2) as pool:
            for begin in range(0, len(sources), 64):
                some = sources[begin : begin + 64]
                list(pool.map(self.read if self._left > 0 else self._look, some))

    def _look(self, source: Source) -> None:
        sizes = []
        for path in source:
            if path is not None:
                sizes.append(image_size(path))
                self._check(path, sizes[-1])
        _check_equal(source, sizes[0], sizes[-1])

    def _check(self, path: Path, size: tuple[int, int]) -> None:
        if min(size) < self._side:
            raise DataError(f"{path}: is {size[1]}x{size[0]}; expected at least the patch size, {self._side}")

    def _read(self, path: Path) -> Pixels:
        image = self._kept.get(path)
        if image is None:
            image = read_image(path)
            self._check(path, image.shape[:2])
            if self._left > 0:
                self._left -= image.nbytes
                self._kept[path] = image
        return image


class _Scenes:
    """Which pairs have the same clean photo, byte for byte: sets of haze have it many times, under names of its own, degraded in
    other ways. The same scene in another file is another scene."""

    def __init__(self) -> None:
        self._sizes: dict[Path, int] = {}

    def _size(self, path: Path) -> int:
        if path not in self._sizes:
            self._sizes[path] = path.stat().st_size
        return self._sizes[path]

    def _same(self, a: Path, b: Path) -> bool:
        return a == b or (self._size(a) == self._size(b) and a.read_bytes() == b.read_bytes())

    def last(self, sources: list[Source], count: int) -> list[Source]:
        """One source of each of the last ``count`` scenes, in their order."""
        found: list[Source] = []
        for source in reversed(sources):
            if len(found) < count and not any(self._same(source[1], other[1]) for other in found):
                found.insert(0, source)
        return found

    def of(self, sources: Iterable[Source]) -> Callable[[Source], bool]:
        """Whether a source shows a scene of those given."""
        by_size: dict[int, list[Path]] = {}
        for _, clean in sources:
            by_size.setdefault(self._size(clean), []).append(clean)
        return lambda source: any(
            self._same(source[1], clean) for clean in by_size.get(self._size(source[1]), ())
        )


class TrainingData:
    """The photos of a run; draws batches and holds the validation pairs, whose scenes it draws nothing of. ``digest`` tells apart
    which photos these are, by their names and sizes. Photos beyond the memory that they may take are
    decoded again whenever they are drawn; of these, the size alone is checked before."""

    def __init__(self, config: RunConfig, root: Path) -> None:
        self.config = config
        data, training = config.data, config.training
        every: dict[str, list[Source]] = {
            "clean": [(None, path) for folder in data.clean for path in list_images(root / folder)],
            "rain": [pair for folder in data.rain for pair in list_pairs(root / folder, "rainy")],
            "haze": [pair for folder in data.haze for pair in list_pairs(root / folder, "hazy")],
            "real": [pair for folder in data.real for pair in list_pairs(root / folder, "noisy")],
        }
        held_back = data.validation_images
        for name, sources in every.items():
            if sources and len(sources) <= held_back:
                raise DataError(
                    f"data.{name} has {len(sources)} images; expected more than validation_images ({held_back})"
                )
        patch = max(patch for _, _, patch in training.shapes)
        self._photos = _Photos(patch, data.memory * 2**30)
        used = {data.source_of(task) for task in data.tasks}
        self._photos.fill([source for name in every if name in used for source in every[name]])
        scenes = _Scenes()
        self._held = {name: scenes.last(sources, held_back) for name, sources in every.items()}
        held = scenes.of(source for sources in self._held.values() for source in sources)
        self._sources = {name: [s for s in sources if not held(s)] for name, sources in every.items()}
        for name, sources in self._sources.items():
            if every[name] and not sources:
                raise DataError(
                    f"data.{name} shows no scene but those held back; expected more than {held_back}"
                )
        listed = [
            (n, *(p and (os.path.relpath(p, root), p.stat().st_size) for p in s))
            for n in used
            for s in every[n]
        ]
        self.digest = sha256(repr(sorted(listed, key=repr)).encode()).hexdigest()
        self._samples = [
            (task, i)
            for task, times in data.tasks.items()
            for i in range(len(self._sources[data.source_of(task)]))
            for _ in range(times)
        ]
        self._order: tuple[tuple[int, int], NDArray[np.intp]] | None = None  # of the epoch drawn from last

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, which shows every photo as often as its tasks say; what does not fill a batch is left out."""
        steps = len(self._samples) // self.config.training.batch_size
        if not steps:
            raise DataError(
                f"an epoch has {len(self._samples)} samples; expected at least a batch ({self.config.training.batch_size})"
            )
        return steps

    @property
    def unit(self) -> int:
        """The steps of what the settings count: 1, or an epoch's."""
        return self.steps_per_epoch if self.config.training.epochs else 1

    def steps_of_round(self, index: int) -> int:
        """How many steps round ``index`` trains; round 0 is the dense one."""
        return self.config.length_of_round(index) * self.unit

    def _order_of_epoch(self, round_index: int, epoch: int) -> NDArray[np.intp]:
        key = round_index, epoch
        order = self._order  # two threads may draw
        if order is None or order[0] != key:
            rng = _generator(self.config.training.seed, *key, 2**32)
            self._order = order = key, rng.permutation(len(self._samples))
        return order[1]

    def _sample(self, round_index: int, step: int, place: int) -> tuple[Image, Image]:
        batch, size = self.config.training.shape(step, self.steps_of_round(round_index))
        rng = _generator(self.config.training.seed, round_index, step, place)
        if self.config.training.epochs:
            epoch, step = divmod(step, self.steps_per_epoch)
            task, index = self._samples[self._order_of_epoch(round_index, epoch)[step * batch + place]]
            sources = self._sources[self.config.data.source_of(task)]
        else:
            names = list(self.config.data.tasks)
            odds = np.array(list(self.config.data.tasks.values()), float)
            task = names[rng.choice(len(names), p=odds / odds.sum())]
            sources = self._sources[self.config.data.source_of(task)]
            index = int(rng.integers(len(sources)))
        degraded, target = self._photos.read(sources[index])
        if task in self.config.data.recipes:
            recipe = self.config.data.recipes[task]
            return recipe.pair(
                None if degraded is None else _unit(degraded), _unit(target), (size, size), rng
            )
        y = rng.integers(target.shape[0] - size + 1)
        x = rng.integers(target.shape[1] - size + 1)
        flips, turns = int(rng.integers(2)), int(rng.integers(4))

        def patch(image: Pixels) -> Image:
            crop = image[y : y + size, x : x + size]
            return _unit(np.rot90(crop[:, ::-1] if flips else crop, turns))

        clean = patch(target)
        return degrade(clean, task, rng) if degraded is None else patch(degraded), clean

    def batch(self, round_index: int, step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
        """(degraded, clean), each (B, 3, patch, patch) in [0, 1], of one step of one round; of several ranks' batch, the
        equal share of one."""
        size = self.config.training.shape(step, self.steps_of_round(round_index))[0]
        samples = [self._sample(round_index, step, place) for place in range(rank, size, ranks)]
        return _to_batch([s[0] for s in samples]), _to_batch([s[1] for s in samples])

    def validation(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Per task, the held-back pairs as (1, 3, H, W), cropped in the middle to 192 or less."""
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for task in self.config.data.tasks:
            rng = _generator(self.config.training.seed, 2**31)
            items = []
            recipe = self.config.data.recipes.get(task)
            for source in self._held[self.config.data.source_of(task)]:
                degraded, target = self._photos.read(source)
                clean, harmed = _unit(_middle(target)), None if degraded is None else _unit(_middle(degraded))
                if recipe is not None:
                    harmed, clean = recipe.pair(harmed, clean, None, rng)
                elif harmed is None:
                    harmed = degrade(clean, task, rng)
                items.append((_to_batch([harmed]), _to_batch([clean])))
            pairs[task] = items
        return pairs


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(key))


_DRAWN = {
    "rain": add_rain,
    "fog": add_fog,
    "jpeg": add_jpeg_drawn,
    "jpeg10": lambda image, _: add_jpeg(image, 10),
    "social": share,
}


def degrade(clean: Image, task: str, rng: np.random.Generator) -> Image:
    """Apply the degradation named ``noise<sigma>``, or one of those above."""
    if task in _DRAWN:
        return _DRAWN[task](clean, rng)
    return add_noise(clean, float(task.removeprefix("noise")), rng)


def _middle(image: Pixels, most: int = 192) -> Pixels:
    height, width = (min(most, side // 8 * 8) for side in image.shape[:2])
    y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[y : y + height, x : x + width]


def _to_batch(images: list[Image]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))
