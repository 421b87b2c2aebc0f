"""Train one round of a run, from its start or from where it was stopped, to its end."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor

from mirl_sparse.errors import UserError
from mirl_training.engine.selection import TrainingEngine
from mirl_training.engine.trainer import Diverged, Trainer
from mirl_training.pruning.mask import Mask
from mirl_training.pruning.settings import PruningProtocol, Rewind
from mirl_training.runs.context import RunContext
from mirl_training.runs.folder import save_weights
from mirl_training.runs.progress import Metrics, OnStep, StepReport
from mirl_training.runs.pruner import Pruner
from mirl_training.runs.schedule import Schedule
from mirl_training.runs.states import RoundState, load_state, save_state
from mirl_training.runs.validation import Validator

_SETTLED = 5  # masks in a row that must be alike (early-bird tickets)


class OutOfTime(Exception):
    """Report that a run stopped because its time was over; the steps done are saved."""

    def __init__(self, index: int, step: int, steps: int) -> None:
        super().__init__(f"round {index}, step {step} of {steps}")


@dataclass(frozen=True)
class Tools:
    """Hold what a round works with beside the trainer.

    Attributes:
        pruner: The pruner, which finds masks.
        validator: The validator, which scores weights.
        on_step: Function that is told every step, of several processes by the first alone.
        deadline: Time by `time.monotonic` from which the round stops after a step; None for never.
    """

    pruner: Pruner
    validator: Validator
    on_step: OnStep
    deadline: float | None = None


def begin_round(context: RunContext, pruner: Pruner, index: int) -> Mask:
    """Load, prune and rewind: leave the network at the start of a round, and return the round's mask."""
    network, folder, pruning = context.network, context.folder, context.config.pruning
    if index == 0:
        network.load_state_dict(load_file(folder.start))
        return pruner.first
    weights = load_file(folder.weights(index - 1))
    network.load_state_dict(weights)
    mask = pruner.prune(folder.load_mask(index - 1), index, weights)
    if pruning.rewind != Rewind.NONE:
        weights = load_file(folder.start if pruning.rewind == Rewind.INITIAL else folder.rewind)
        is_mirl = pruning.protocol == PruningProtocol.MIRL
        if is_mirl:  # MIR-L leaves prompts and temperatures as trained
            weights = {n: w for n, w in weights.items() if "weight" in n or "bias" in n}
        network.load_state_dict(weights, strict=not is_mirl)
    mask.apply(network)
    return mask


def read_unfinished(context: RunContext, index: int) -> RoundState | None:
    """Return the saved state of a round, None if the round has not been begun.

    Raises:
        UserError: Processes find different states.
    """
    path, engine = context.folder.state, context.computation.engine
    state = load_state(path) if path.exists() else None
    if state is not None and state["round"] != index:
        state = None
    step = None if state is None else state["step"]
    if context.world.shared(lambda: step) != step:
        raise UserError(f"{path}: processes find different steps of round {index} there; start them again")
    if state is None:
        return None
    if (threads := state["threads"]) != torch.get_num_threads():
        warnings.warn(
            f"round {index} was begun on {threads} threads and goes on on {torch.get_num_threads()}:"
            " sums round differently",
            stacklevel=2,
        )
    if state["engine"] != engine:
        warnings.warn(
            f"round {index} was begun by the engine {state['engine']} and goes on by {engine}:"
            " sums round differently",
            stacklevel=2,
        )
    return state


class Round:
    """Train one round.

    The network of the context is at the round's start, or where the round was stopped, once this is
    constructed.

    Args:
        context: The run's context.
        tools: The run's tools.
        index: Index of the round, 0 for the dense one.
        further_steps: Steps of the run's rounds after this one, for the time left.

    Raises:
        UserError: Processes find different states, a gradient is not finite, or the mask cannot be found.
    """

    def __init__(self, context: RunContext, tools: Tools, index: int, further_steps: int) -> None:
        self._context, self._tools, self._index, self._further_steps = context, tools, index, further_steps
        self._config, self._world = context.config, context.world
        self._schedule = Schedule.of_round(context.config, index, context.data.unit)
        state = read_unfinished(context, index)
        self._mask = Mask(state["mask"]) if state else begin_round(context, tools.pruner, index)
        self._density = self._mask.density
        self._trainer = Trainer(context.network, self._mask, context.config.training, context.computation)
        self._done, self._losses, self._drawn = 0, list[float](), list[Mask]()
        if state:
            self._trainer.load_state_dict(state["trainer"])
            self._done, self._losses = state["step"], state["losses"]
            self._drawn = [Mask(alive) for alive in state["drawn"]]
        self._first = self._done
        self._durations: list[float] = []

    def train(self) -> None:
        """Train to the end of the round, and write its folder.

        Raises:
            OutOfTime: The deadline has passed; the state is saved.
            UserError: A gradient is not finite.
        """
        self._world.wait()
        began, steps = time.monotonic(), self._schedule.steps
        with closing(self._batches()) as batches:
            for degraded, clean in batches:
                report = self._step(degraded, clean)
                is_settled = False
                if self._done % self._config.training.validate_every == 0 or self._done == steps:
                    is_settled = self._validate(report)
                pace = (time.monotonic() - began) / (self._done - self._first)
                report["seconds_left"] = pace * (steps - self._done + self._further_steps)
                if is_settled or self._done == steps:
                    break
                self._tell(report)
                self._save_or_stop()
        self._finish(report)

    def _batches(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield the batches that are left; the next one is drawn while one trains."""
        with ThreadPoolExecutor(1) as pool:
            upcoming = pool.submit(self._context.batch, self._index, self._done)
            for step in range(self._done, self._schedule.steps):
                batch = upcoming.result()
                if step + 1 < self._schedule.steps:
                    upcoming = pool.submit(self._context.batch, self._index, step + 1)
                yield batch

    def _step(self, degraded: Tensor, clean: Tensor) -> StepReport:
        rate = self._schedule.rate(self._done)
        began = time.perf_counter()
        try:
            self._losses.append(self._trainer.step(degraded, clean, rate))
        except Diverged as diverged:
            raise self._context.divergence_error(self._index, diverged) from None
        self._durations.append(time.perf_counter() - began)
        self._done += 1
        is_rewound_to = (
            self._index == 0 and self._config.pruning.rewind == self._done / self._context.data.unit
        )
        if is_rewound_to and self._world.leads:
            weights = self._context.network.state_dict()
            save_weights(self._context.folder.rewind, weights, self._context.architecture.metadata())
        return {
            "round": self._index,
            "step": self._done,
            "steps": self._schedule.steps,
            "loss": self._losses[-1],
            "learning_rate": rate,
            "density": self._density,
        }

    def _validate(self, report: StepReport) -> bool:
        """Add what a validation tells to a report; return whether the round's next mask has settled."""
        report["loss"], self._losses = sum(self._losses) / len(self._losses), []
        report["seconds_per_step"], self._durations = median(self._durations), []
        is_settled = self._draw_mask(report)
        if self._world.leads:
            report["psnr"] = self._tools.validator.validate(self._trainer.weights)
        return is_settled

    def _draw_mask(self, report: StepReport) -> bool:
        """Draw the mask that the round would leave, where asked for; return whether it has settled."""
        pruning, index = self._config.pruning, self._index
        if pruning.settled is None or index == pruning.rounds:
            return False
        mask = self._tools.pruner.prune(self._mask, index + 1, self._trainer.weights)
        self._drawn = [*self._drawn, mask][-_SETTLED:]
        report["unsettled"] = max(a.distance(b) for a in self._drawn for b in self._drawn)
        # Not before there is what later rounds are rewound to.
        unit = self._context.data.unit
        is_early = index == 0 and isinstance(pruning.rewind, int) and self._done < pruning.rewind * unit
        return len(self._drawn) == _SETTLED and report["unsettled"] <= pruning.settled and not is_early

    def _tell(self, report: StepReport) -> None:
        if not self._world.leads:
            return
        if "psnr" in report:
            self._context.folder.append_log(report)
        self._tools.on_step(report)

    def _save_or_stop(self) -> None:
        """Save the state where it is due, or where the time is over; then stop."""
        is_over = self._is_out_of_time()
        if (is_over or self._done % self._config.training.save_every == 0) and self._world.leads:
            state: RoundState = {
                "round": self._index,
                "step": self._done,
                "losses": self._losses,
                "drawn": [dict(mask.alive) for mask in self._drawn],
                "engine": str(self._context.computation.engine),
                "threads": torch.get_num_threads(),
                "mask": dict(self._mask.alive),
                "trainer": self._trainer.state_dict(),
            }
            save_state(self._context.folder.state, state)
        if is_over:
            if self._world.leads:
                metadata = self._context.architecture.metadata()
                save_weights(self._context.folder.latest, self._trainer.weights, metadata)
            self._world.wait()
            raise OutOfTime(self._index, self._done, self._schedule.steps)

    def _is_out_of_time(self) -> bool:
        if self._tools.deadline is None:
            return False
        return self._world.shared(
            partial(lambda deadline: time.monotonic() >= deadline, self._tools.deadline)
        )

    def _finish(self, report: StepReport) -> None:
        if self._world.leads:
            if self._context.computation.engine == TrainingEngine.FUSED:
                report["seconds_per_image"] = self._tools.validator.seconds_per_image()
            self._tell(report)
            metrics: Metrics = {
                "round": self._index,
                "steps": self._done,
                "loss": report["loss"],
                "density": self._density,
                "psnr": report["psnr"],
            }
            self._context.folder.finish_round(
                metrics, self._mask, self._trainer.weights, self._context.architecture.metadata()
            )
        self._world.wait()
