"""Choose which weights of a network stay, by criteria or by what they cost on a clock."""

from mirl_training.pruning.criteria import keep_largest, prune_as_mirl, prune_to_density
from mirl_training.pruning.latency import (
    Channels,
    Clock,
    PromptIRClock,
    prune_to_latency,
)
from mirl_training.pruning.layer_clock import LayerClock
from mirl_training.pruning.mask import Mask, MaskError, prunable_names
from mirl_training.pruning.regrowth import regrow
from mirl_training.pruning.settings import Criterion, PruningProtocol, PruningSettings, Regrowth, Rewind

__all__ = [
    "Channels",
    "Clock",
    "Criterion",
    "LayerClock",
    "Mask",
    "MaskError",
    "PromptIRClock",
    "PruningProtocol",
    "PruningSettings",
    "Regrowth",
    "Rewind",
    "keep_largest",
    "prunable_names",
    "prune_as_mirl",
    "prune_to_density",
    "prune_to_latency",
    "regrow",
]
