"""Choose which photo of which task is drawn at each place of each batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mirl_training.data.folders import DataError

if TYPE_CHECKING:
    from mirl_training.runs.config import RunConfig

_EPOCH_KEY = 2**32  # above every step, so that an epoch's order and a sample never share a generator


def generator(*key: int) -> np.random.Generator:
    """Return a generator that depends on the key alone."""
    return np.random.Generator(np.random.PCG64(key))


class Sampler:
    """Choose tasks and photos; a choice depends on the seed, the round, the step and the place alone.

    Args:
        config: The run's settings.
        counts: Number of photos or pairs to draw from, by their source ("clean", "rain", ...).
    """

    def __init__(self, config: RunConfig, counts: Mapping[str, int]) -> None:
        self._config, self._counts = config, counts
        self._samples = [
            (task, i)
            for task, times in config.data.tasks.items()
            for i in range(counts[config.data.source_of(task)])
            for _ in range(times)
        ]
        self._order: tuple[tuple[int, int], NDArray[np.intp]] | None = None  # of the epoch drawn from last

    @property
    def steps_per_epoch(self) -> int:
        """Return how many batches an epoch has.

        An epoch shows every photo as often as its tasks say. What does not fill a batch is left out.

        Raises:
            DataError: An epoch has fewer samples than a batch.
        """
        batch_size = self._config.training.batch_size
        steps = len(self._samples) // batch_size
        if not steps:
            raise DataError(
                f"an epoch has {len(self._samples)} samples; expected at least a batch ({batch_size})"
            )
        return steps

    def choose(self, round_index: int, step: int, place: int, rng: np.random.Generator) -> tuple[str, int]:
        """Return the task of one place of a batch, and the index of the photo within the task's source.

        Args:
            round_index: 0 for the dense round.
            step: Index of the step in the round, from 0.
            place: Place in the batch, from 0.
            rng: The sample's own generator, drawn from where training counts steps.
        """
        data = self._config.data
        if self._config.training.epochs:
            epoch, step = divmod(step, self.steps_per_epoch)
            first = step * self._config.training.batch_size
            return self._samples[self._order_of_epoch(round_index, epoch)[first + place]]
        names = list(data.tasks)
        odds = np.array(list(data.tasks.values()), float)
        task = names[rng.choice(len(names), p=odds / odds.sum())]
        return task, int(rng.integers(self._counts[data.source_of(task)]))

    def _order_of_epoch(self, round_index: int, epoch: int) -> NDArray[np.intp]:
        key = round_index, epoch
        order = self._order  # two threads may draw
        if order is None or order[0] != key:
            rng = generator(self._config.training.seed, *key, _EPOCH_KEY)
            self._order = order = key, rng.permutation(len(self._samples))
        return order[1]
