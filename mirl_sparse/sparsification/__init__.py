"""Swap the layers and blocks of any pruned network for sparse ones, for one target."""

from mirl_sparse.sparsification.cpu import CpuTarget
from mirl_sparse.sparsification.network_restorer import NetworkRestorer
from mirl_sparse.sparsification.report import SparsifiedLayer, SparsityReport
from mirl_sparse.sparsification.sparsify import sparsify, sparsify_for
from mirl_sparse.sparsification.target import SparsificationTarget

__all__ = [
    "CpuTarget",
    "NetworkRestorer",
    "SparsificationTarget",
    "SparsifiedLayer",
    "SparsityReport",
    "sparsify",
    "sparsify_for",
]
