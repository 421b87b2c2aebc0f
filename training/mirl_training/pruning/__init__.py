"""Choose which weights of a network stay, by criteria or by what they cost on a clock."""

from mirl_training.pruning.criteria import keep_largest, prune, prune_as_mirl
from mirl_training.pruning.latency import (
    Channels,
    channels,
    prune_to_latency,
    seconds,
    seconds_per_weight,
)
from mirl_training.pruning.mask import Mask, MaskError, prunable_names
from mirl_training.pruning.regrowth import regrow
from mirl_training.pruning.settings import Criterion, PruningProtocol, PruningSettings, Regrowth, Rewind

__all__ = [
    "Channels",
    "Criterion",
    "Mask",
    "MaskError",
    "PruningProtocol",
    "PruningSettings",
    "Regrowth",
    "Rewind",
    "channels",
    "keep_largest",
    "prunable_names",
    "prune",
    "prune_as_mirl",
    "prune_to_latency",
    "regrow",
    "seconds",
    "seconds_per_weight",
]
