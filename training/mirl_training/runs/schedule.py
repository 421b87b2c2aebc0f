"""Compute the learning rate of each step of a round."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mirl_training.runs.config import RunConfig


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine down to 0.

    Args:
        step: Index of the step, from 0.
        steps: Number of steps of the round; there the rate is 0.
        peak: The highest rate.
        warmup: Steps until the peak.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def learning_rate_of_epoch(epoch: int, epochs: int, peak: float, warmup: int) -> float:
    """Return the learning rate of an epoch, as MIR-L trains.

    It is linear from 0 in the first epoch to the peak in epoch ``warmup - 1``, then half a cosine.

    Args:
        epoch: Index of the epoch, from 0.
        epochs: Number of epochs of the round.
        peak: The highest rate.
        warmup: Epochs of the warm-up.
    """
    if epoch < warmup - 1:
        return peak * epoch / (warmup - 1)
    if epoch < warmup:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(1, epochs - warmup)))


@dataclass(frozen=True)
class Schedule:
    """Hold what the learning rates of one round depend on.

    Attributes:
        steps: Number of steps of the round.
        peak: The highest learning rate.
        warmup_steps: Steps of the warm-up, where ``epoch_steps`` is None.
        warmup_epochs: Epochs of the warm-up, where it is not.
        epoch_steps: Steps of an epoch, where the rate changes from epoch to epoch.
    """

    steps: int
    peak: float
    warmup_steps: int = 0
    warmup_epochs: int = 0
    epoch_steps: int | None = None

    @classmethod
    def of_round(cls, config: RunConfig, index: int, unit: int) -> Schedule:
        """Return the schedule of a round; ``unit`` is the steps of what settings count, 1 or an epoch's."""
        training = config.training
        return cls(
            config.length_of_round(index) * unit,
            config.peak_of_round(index),
            training.warmup_steps,
            training.warmup_epochs,
            unit if training.epochs else None,
        )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        if self.epoch_steps is None:
            return learning_rate(step, self.steps, self.peak, self.warmup_steps)
        epoch, epochs = step // self.epoch_steps, self.steps // self.epoch_steps
        return learning_rate_of_epoch(epoch, epochs, self.peak, self.warmup_epochs)
