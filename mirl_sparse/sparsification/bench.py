"""Benchmark a network of any architecture on the CPU: dense against sparsified, in one process."""

from __future__ import annotations

from collections.abc import Collection

import torch

from mirl_sparse.architectures.image_network import ImageNetwork
from mirl_sparse.errors import UserError
from mirl_sparse.performance.comparison import Candidate, Comparison, ComparisonResult
from mirl_sparse.performance.peers import DENSE
from mirl_sparse.sparsification.network_restorer import example_image
from mirl_sparse.sparsification.sparsify import sparsify

SPARSE, SPARSE_COMPILED = "sparse cpu", "sparse cpu compiled"


@torch.no_grad()
def bench_network(
    network: ImageNetwork,
    side: int,
    runs: int = 7,
    dense: Collection[str] = tuple(DENSE),
    has_compiled: bool = True,
) -> ComparisonResult:
    """Compare the sparsified network with the dense one in several engines.

    Args:
        network: The dense network, zeros included.
        side: Height and width of the image.
        runs: Number of rounds.
        dense: Names of `peers.DENSE`.
        has_compiled: Whether the sparsified network is timed with torch.compile as well.

    Raises:
        UserError: The network does not take images of this size, or the sparsified one restores something
            else.
    """
    if network.size.padded(side, side) != (side, side):
        rule = network.size
        raise UserError(
            f"size {side} does not suit {network.architecture}; expected a multiple of {rule.multiple},"
            f" {max(rule.minimum, rule.multiple)} or more"
        )
    image = example_image(network, side)
    expected = network(image)
    sparsified = sparsify(network, image)
    sparse = {SPARSE: Candidate(sparsified, expected)}
    if has_compiled:
        sparse[SPARSE_COMPILED] = Candidate(torch.compile(sparsified, dynamic=False), expected)
    comparison = Comparison(network, expected, sparse, image, dense)
    if SPARSE not in comparison.sparse:
        raise UserError(f"{SPARSE} {comparison.left_out[SPARSE]}, so nothing is timed")
    for _ in range(runs):
        comparison.round()
    return comparison.result()
