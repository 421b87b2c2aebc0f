"""Benchmark a ticket on the CPU: dense against sparse in one process.

The dense network is the ticket's own, zeros included, as it would be run without this package.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mirl_kernels.core import cpu
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.choices import BackendName, Precision
from mirl_sparse.errors import UserError
from mirl_sparse.performance.comparison import (
    BFLOAT16_TOLERANCE,
    Candidate,
    Comparison,
    ComparisonResult,
)
from mirl_sparse.performance.oracle import expected
from mirl_sparse.performance.peers import DENSE
from mirl_sparse.performance.profile import Profile, profile
from mirl_sparse.runtime.restorer import SparseRestorer

SPARSE, SPARSE_BFLOAT16 = "sparse cpu", "sparse cpu bfloat16"


@dataclass(frozen=True)
class BenchResult(ComparisonResult):
    """Hold the result of a benchmark on the CPU.

    Attributes:
        profile: Profile of the sparse network's time.
    """

    profile: Profile

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        return super().to_dict() | {"profile": self.profile.to_dict()}


def bench(
    network: PromptIR, image: Tensor, runs: int = 7, dense: Collection[str] = tuple(DENSE)
) -> BenchResult:
    """Compare `SparseRestorer` with the dense network in several engines, and profile it.

    Where the processor multiplies bfloat16 numbers, it is timed in bfloat16 as well.

    Args:
        network: A ticket's network.
        image: (B, 3, H, W) float32 on the CPU, H and W as the network takes them.
        runs: Number of rounds.
        dense: Names of `peers.DENSE`.

    Raises:
        UserError: The sparse network restores something else than the dense one.
    """
    right = expected(network, image)
    sparse = {SPARSE: Candidate(SparseRestorer(network, BackendName.CPU), right)}
    if cpu.bfloat16_unit() is not cpu.Bfloat16Unit.NONE:
        rounded = SparseRestorer(network, BackendName.CPU, precision=Precision.BFLOAT16)
        sparse[SPARSE_BFLOAT16] = Candidate(rounded, right, BFLOAT16_TOLERANCE)
    comparison = Comparison(network, right, sparse, image, dense)
    if SPARSE not in comparison.sparse:
        raise UserError(f"{SPARSE} {comparison.left_out[SPARSE]}, so nothing is timed")
    for _ in range(runs):
        comparison.round()
    return BenchResult(**vars(comparison.result()), profile=profile(network, image, runs))
