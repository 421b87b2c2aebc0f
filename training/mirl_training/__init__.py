"""Train restoration networks, prune them in rounds, and score what is left.

The packages, from the bottom up: ``data`` makes batches of photos, ``pruning`` chooses which weights stay,
``engine`` trains one step, ``runs`` carries a run through its rounds, ``search`` does so for any network,
``evaluation`` scores restorers on test sets, and ``cli`` holds the commands.

The exports are loaded when they are first used, so that the command line starts fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirl_training.engine.settings import TrainingSettings
    from mirl_training.search import PrunedNetwork, RoundResult, Rounds, prune

__all__ = ["PrunedNetwork", "RoundResult", "Rounds", "TrainingSettings", "prune"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "engine.settings" if name == "TrainingSettings" else "search"
    return getattr(import_module(f"{__name__}.{module}"), name)
