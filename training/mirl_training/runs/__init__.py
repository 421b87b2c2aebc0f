"""Carry a run through its rounds in a folder: train, prune, rewind, save, and report."""

from mirl_training.runs.architecture import UNLIMITED_MEMORY, architecture_of, read_architecture
from mirl_training.runs.config import RunConfig, load_config
from mirl_training.runs.folder import RunFolder, read_log, save_weights
from mirl_training.runs.progress import Metrics, OnStep, StepReport
from mirl_training.runs.report import write_report
from mirl_training.runs.round import OutOfTime
from mirl_training.runs.run import Run
from mirl_training.runs.schedule import Schedule, learning_rate, learning_rate_of_epoch
from mirl_training.runs.validation import Validator

__all__ = [
    "UNLIMITED_MEMORY",
    "Metrics",
    "OnStep",
    "OutOfTime",
    "Run",
    "RunConfig",
    "RunFolder",
    "Schedule",
    "StepReport",
    "Validator",
    "architecture_of",
    "learning_rate",
    "learning_rate_of_epoch",
    "load_config",
    "read_architecture",
    "read_log",
    "save_weights",
    "write_report",
]
