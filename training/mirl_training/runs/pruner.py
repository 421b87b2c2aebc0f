"""Find the mask of each round of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import Tensor, nn

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_sparse.errors import UserError
from mirl_sparse.performance.cost import CostModel
from mirl_sparse.performance.prices import cost_model
from mirl_training.engine.trainer import Diverged, Trainer
from mirl_training.pruning.criteria import prune_as_mirl, prune_to_density
from mirl_training.pruning.latency import prune_to_latency
from mirl_training.pruning.mask import Mask
from mirl_training.pruning.settings import Criterion, PruningProtocol
from mirl_training.runs.context import RunContext

_BATCHES = 48  # that the importance of weights is a mean over


class Pruner:
    """Prune the network of a run from round to round.

    Args:
        context: The run's context.
        first: The mask of round 0.
        scratch: A network of the run's architecture on the CPU; its values are overwritten.

    Attributes:
        first: The mask of round 0.
    """

    def __init__(self, context: RunContext, first: Mask, scratch: nn.Module) -> None:
        self.first = first
        self._context, self._settings, self._scratch = context, context.config.pruning, scratch
        self._model: CostModel | None = None
        self._first_seconds = 0.0

    def read_prices(self) -> None:
        """Take the prices that the run began with, or else the first process's; for the criterion latency.

        Raises:
            UserError: The C++ kernels, which the prices are of, cannot run here.
        """
        if self._settings.criterion != Criterion.LATENCY:
            return
        try:
            cpu.load_library()
        except BackendError as error:
            raise UserError(
                f"pruning.criterion is latency, which is measured on the C++ kernels, but {error}"
            ) from None
        self._model = CostModel(self._context.world.shared(self._read_or_measure))
        clock = self._context.architecture.clock(self._scratch, self._model)
        self._first_seconds = clock.seconds(self.first)

    def _read_or_measure(self) -> dict[str, float]:
        path = self._context.folder.prices
        return json.loads(path.read_text()) if path.exists() else cost_model().prices

    @property
    def prices(self) -> dict[str, float] | None:
        """Return the prices of the cost model; None unless the criterion is latency."""
        return None if self._model is None else self._model.prices

    def check(self, weights: dict[str, Tensor]) -> None:
        """Raise MaskError unless the last round's goal can be reached from the first weights."""
        if self._settings.protocol == PruningProtocol.DEFAULT:
            self._prune(self.first, self._settings.rounds, weights, self.first.alive)

    def prune(self, mask: Mask, index: int, weights: dict[str, Tensor]) -> Mask:
        """Return the mask of a round, as the first process finds it.

        Args:
            mask: The mask of the round before; the result is nested in it.
            index: Index of the round that begins.
            weights: A state dict that the round before leaves behind.

        Raises:
            UserError: A gradient is not finite.
            MaskError: The goal cannot be reached.
        """
        needs_importance = self._settings.criterion == Criterion.LATENCY
        importance = self._importance(mask, index - 1, weights) if needs_importance else {}
        pruned = self._prune(mask, index, weights, importance)
        return Mask(self._context.world.shared(lambda: pruned.alive))

    def _prune(
        self, mask: Mask, index: int, weights: dict[str, Tensor], importance: Mapping[str, Tensor]
    ) -> Mask:
        network, pruning = self._scratch, self._settings
        network.load_state_dict(weights)
        if pruning.protocol == PruningProtocol.MIRL:
            return prune_as_mirl(network, mask, pruning.rate, pruning.criterion)
        if pruning.criterion == Criterion.LATENCY:
            assert pruning.speedup is not None and self._model is not None
            budget = self._first_seconds * pruning.speedup ** (-index / pruning.rounds)
            clock = self._context.architecture.clock(network, self._model)
            return prune_to_latency(clock, importance, mask, budget, pruning.exempt)
        density = self.first.density * (1 - pruning.rate) ** index
        return prune_to_density(network, mask, density, pruning.criterion, pruning.exempt)

    def _importance(self, mask: Mask, index: int, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `Trainer.importance` at the end of a round, by the batches that it would train on next."""
        context = self._context
        network = context.architecture.empty().requires_grad_(True)
        network.to(next(context.network.parameters()).device).load_state_dict(weights)
        settings = context.config.training.model_copy(update={"ema": None})
        trainer = Trainer(network, mask, settings, context.computation)
        steps = context.data.steps_of_round(index)
        batches = [context.batch(index, step) for step in range(steps, steps + _BATCHES)]
        try:
            importance = trainer.importance(batches)
        except Diverged as diverged:
            raise context.divergence_error(index, diverged) from None
        return {n: values.cpu() for n, values in importance.items()}
