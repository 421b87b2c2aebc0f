"""Weights that cannot reach the result are removed, and the result stays the same."""

import torch

from mirl_sparse.tickets import remove_dead_channels


def test_removing_dead_channels_changes_no_result(network):
    x = torch.rand(1, 3, 24, 32)
    before = network.double()(x.double())
    assert remove_dead_channels(network) > 0
    assert remove_dead_channels(network) == 0  # a fixpoint
    torch.testing.assert_close(network(x.double()), before, atol=1e-12, rtol=0)
