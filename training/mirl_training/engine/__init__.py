"""Train one network under one mask: a step's loss, gradients, optimizers and averages."""

from mirl_training.engine.fused import fuse, unfuse
from mirl_training.engine.optimizer import Muon, optimizers, orthogonalised
from mirl_training.engine.selection import TrainingEngine, choose_engine
from mirl_training.engine.settings import (
    Loss,
    OptimizerName,
    ProgressiveStage,
    TrainingPrecision,
    TrainingSettings,
)
from mirl_training.engine.trainer import Computation, Diverged, Trainer, harm, psnr_loss
from mirl_training.engine.world import World

__all__ = [
    "Computation",
    "Diverged",
    "Loss",
    "Muon",
    "OptimizerName",
    "ProgressiveStage",
    "Trainer",
    "TrainingEngine",
    "TrainingPrecision",
    "TrainingSettings",
    "World",
    "choose_engine",
    "fuse",
    "harm",
    "optimizers",
    "orthogonalised",
    "psnr_loss",
    "unfuse",
]
