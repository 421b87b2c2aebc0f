"""Run pruned image restoration networks faster than dense ones.

The exports are loaded when they are first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mirl_kernels.errors import BackendError
from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    from mirl_sparse.architectures.promptir import PromptIR, PromptIRConfig
    from mirl_sparse.conversion import convert
    from mirl_sparse.restoring import load_restorer
    from mirl_sparse.runtime import SparseRestorer
    from mirl_sparse.sparsification import NetworkRestorer, sparsify

__all__ = [
    "BackendError",
    "NetworkRestorer",
    "PromptIR",
    "PromptIRConfig",
    "SparseRestorer",
    "UserError",
    "convert",
    "load_restorer",
    "sparsify",
]

_MODULES = {
    "NetworkRestorer": "mirl_sparse.sparsification",
    "PromptIR": "mirl_sparse.architectures.promptir",
    "PromptIRConfig": "mirl_sparse.architectures.promptir",
    "SparseRestorer": "mirl_sparse.runtime",
    "convert": "mirl_sparse.conversion",
    "load_restorer": "mirl_sparse.restoring",
    "sparsify": "mirl_sparse.sparsification",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"mirl_sparse.{name} needs PyTorch: install mirl-sparse with the extra torch", name="torch"
        ) from None
