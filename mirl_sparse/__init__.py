"""Run pruned image restoration networks faster than dense ones.

What is exported here is loaded when it is first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    from mirl_sparse.architectures.promptir import PromptIR, PromptIRConfig
    from mirl_sparse.conversion import convert
    from mirl_sparse.runtime.restorer import SparseRestorer
    from mirl_sparse.sparsification import sparsify

__all__ = ["PromptIR", "PromptIRConfig", "SparseRestorer", "UserError", "convert", "sparsify"]

_HOMES = {
    "PromptIR": "mirl_sparse.architectures.promptir",
    "PromptIRConfig": "mirl_sparse.architectures.promptir",
    "SparseRestorer": "mirl_sparse.runtime.restorer",
    "convert": "mirl_sparse.conversion",
    "sparsify": "mirl_sparse.sparsification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
