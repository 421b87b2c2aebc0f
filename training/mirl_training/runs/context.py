"""Hold what all rounds of a run share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mirl_sparse.errors import UserError
from mirl_training.data.training_data import TrainingData
from mirl_training.engine.trainer import Computation, Diverged
from mirl_training.engine.world import World
from mirl_training.runs.architecture import Architecture
from mirl_training.runs.config import RunConfig
from mirl_training.runs.folder import RunFolder


@dataclass(frozen=True)
class RunContext:
    """Hold what all rounds of a run share.

    Attributes:
        data: The photos, with the run's settings.
        folder: The run's folder.
        architecture: The architecture of the network.
        network: The network that trains.
        computation: The engine, the teacher and the processes of a step.
    """

    data: TrainingData
    folder: RunFolder
    architecture: Architecture
    network: nn.Module
    computation: Computation

    @property
    def config(self) -> RunConfig:
        """Return the settings of the run."""
        return self.data.config

    @property
    def world(self) -> World:
        """Return the processes that train together."""
        return self.computation.world

    def batch(self, index: int, step: int) -> tuple[Tensor, Tensor]:
        """Return this process's share of the batch of a step of a round; see `TrainingData.batch`."""
        return self.data.batch(index, step, self.world.rank, self.world.ranks)

    def divergence_error(self, index: int, cause: Diverged) -> UserError:
        """Return the error that tells the user that a round diverged, and what to do."""
        section = "pruning" if index and self.config.pruning.learning_rate else "training"
        return UserError(
            f"{self.folder.path}: training diverged ({cause}); lower {section}.learning_rate"
            f" ({self.config.peak_of_round(index)}) and start anew in another folder"
        )
