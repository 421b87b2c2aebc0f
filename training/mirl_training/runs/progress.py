"""Define what a run tells while it trains, and what it writes about a finished round."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict


class _Step(TypedDict):
    round: int
    step: int
    steps: int
    loss: float
    learning_rate: float
    density: float


class StepReport(_Step, total=False):
    """Hold what a run tells of one step; with a validation, this is a line of ``log.jsonl``.

    Attributes:
        round: Index of the round, 0 for the dense one.
        step: Steps done, from 1.
        steps: Number of steps of the round.
        loss: Loss of the step; with a validation the mean since the one before.
        learning_rate: Learning rate of the step.
        density: Alive / all prunable weights.
        seconds_per_step: Median since the validation before; with a validation only.
        unsettled: The largest distance of the last masks that the round would leave, as a share of the
            weights; with a validation only, where the settings ask for it.
        psnr: Mean PSNR by task, in dB; with a validation only.
        seconds_left: Seconds that the whole run has left, at the pace of this round.
        seconds_per_image: Time of an image of 256x256; at the end of a round, on the fused engine only.
    """

    seconds_per_step: float
    unsettled: float
    psnr: dict[str, float]
    seconds_left: float
    seconds_per_image: float


class Metrics(TypedDict):
    """Hold what ``metrics.json`` says of a finished round; the fields are those of `StepReport`."""

    round: int
    steps: int
    loss: float
    density: float
    psnr: dict[str, float]


OnStep = Callable[[StepReport], None]
