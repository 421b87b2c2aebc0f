"""Pruned image restoration networks, run sparse."""

from mirl_sparse.conversion import convert
from mirl_sparse.errors import UserError
from mirl_sparse.network import PromptIR, PromptIRConfig
from mirl_sparse.restorer import SparseRestorer
from mirl_sparse.to_ticket import to_ticket

__all__ = ["PromptIR", "PromptIRConfig", "SparseRestorer", "UserError", "convert", "to_ticket"]
