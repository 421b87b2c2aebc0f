"""Training batches and validation pairs, drawn from photos held in memory.

A batch depends on (seed, round, step) alone, never on what was drawn before it, so an interrupted
run goes on with the very batches it would have seen.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mirl_sparse.errors import UserError
from mirl_sparse.images import IMAGE_SUFFIXES, read_image
from mirl_training.config import RunConfig
from mirl_training.degradations import Image, add_fog, add_jpeg_drawn, add_noise, add_rain, share


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


def _unit(image: NDArray[np.uint8]) -> Image:
    return image.astype(np.float32) / np.float32(255)


class TrainingData:
    """All photos of a run as uint8 arrays; draws batches and holds the validation pairs."""

    def __init__(self, config: RunConfig, root: Path) -> None:
        self.config = config
        held_back = config.data.validation_images
        clean = list_images(root / config.data.clean)
        haze = list_pairs(root / config.data.haze, "hazy") if config.data.haze else []
        for what, items in (("clean", clean), ("haze", haze)):
            if items and len(items) <= held_back:
                raise DataError(
                    f"data.{what} has {len(items)} images; expected more than validation_images ({held_back})"
                )
        with ThreadPoolExecutor(2) as pool:
            self._clean = list(pool.map(read_image, clean))
            self._haze = list(pool.map(lambda pair: tuple(map(read_image, pair)), haze))
        patch = config.training.patch_size
        for path, image in zip(clean, self._clean, strict=True):
            if min(image.shape[:2]) < patch:
                raise DataError(
                    f"{path}: is {image.shape[1]}x{image.shape[0]}; expected at least the patch size, {patch}"
                )
        for (path, _), (degraded, target) in zip(haze, self._haze, strict=True):
            if degraded.shape != target.shape or min(degraded.shape[:2]) < patch:
                raise DataError(
                    f"{path}: {degraded.shape} beside {target.shape}; expected equal sizes of at least {patch}"
                )
        self._clean_held, self._clean = self._clean[-held_back:], self._clean[:-held_back]
        self._haze_held, self._haze = self._haze[-held_back:], self._haze[:-held_back]

    def _sample(self, rng: np.random.Generator, task: str) -> tuple[Image, Image]:
        size = self.config.training.patch_size
        pair = self._haze[rng.integers(len(self._haze))] if task == "haze" else None
        target = pair[1] if pair else self._clean[rng.integers(len(self._clean))]
        y = rng.integers(target.shape[0] - size + 1)
        x = rng.integers(target.shape[1] - size + 1)
        flips, turns = int(rng.integers(2)), int(rng.integers(4))

        def patch(image: NDArray[np.uint8]) -> Image:
            crop = image[y : y + size, x : x + size]
            return _unit(np.rot90(crop[:, ::-1] if flips else crop, turns))

        clean = patch(target)
        return (patch(pair[0]) if pair else degrade(clean, task, rng)), clean

    def batch(self, round_index: int, step: int) -> tuple[Tensor, Tensor]:
        """(degraded, clean), each (B, 3, patch, patch) in [0, 1], of one step of one round."""
        settings = self.config.training
        rng = np.random.Generator(np.random.PCG64([settings.seed, round_index, step]))
        names = list(self.config.data.tasks)
        odds = np.array([self.config.data.tasks[n] for n in names], float)
        tasks = rng.choice(len(names), settings.batch_size, p=odds / odds.sum())
        samples = [self._sample(rng, names[t]) for t in tasks]
        return _to_batch([s[0] for s in samples]), _to_batch([s[1] for s in samples])

    def validation(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """Per task, the held-back pairs as (1, 3, H, W), cropped in the middle to 192 or less."""
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for task in self.config.data.tasks:
            rng = np.random.Generator(np.random.PCG64([self.config.training.seed, 2**31]))
            items = []
            held = self._haze_held if task == "haze" else [(None, image) for image in self._clean_held]
            for degraded, target in held:
                clean = _unit(_middle(target))
                harmed = degrade(clean, task, rng) if degraded is None else _unit(_middle(degraded))
                items.append((_to_batch([harmed]), _to_batch([clean])))
            pairs[task] = items
        return pairs


_DRAWN = {"rain": add_rain, "fog": add_fog, "jpeg": add_jpeg_drawn, "social": share}


def degrade(clean: Image, task: str, rng: np.random.Generator) -> Image:
    """Apply the degradation named ``noise<sigma>``, or one of those above."""
    if task in _DRAWN:
        return _DRAWN[task](clean, rng)
    return add_noise(clean, float(task.removeprefix("noise")), rng)


def _middle(image: NDArray[np.uint8], most: int = 192) -> NDArray[np.uint8]:
    height, width = (min(most, side // 8 * 8) for side in image.shape[:2])
    y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[y : y + height, x : x + width]


def _to_batch(images: list[Image]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)))
