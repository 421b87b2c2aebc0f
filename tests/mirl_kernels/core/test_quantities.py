"""Test the quantities that the cost model counts."""

import json
from collections import Counter

import pytest
import torch

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Quantity

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")


def test_quantities_are_stored_under_names_that_stay():
    """Runs of training keep prices under them."""
    assert json.loads(json.dumps({Quantity.ENTRY_OF_GROUP: 1.0})) == {"entry of a group": 1.0}
    assert Counter({Quantity.CALL: 2})["call"] == 2
    assert [str(q.value) for q in Quantity] == [
        "call",
        "far float",
        "row",
        "row of a group",
        "dense",
        "entry",
        "entry of a group",
        "far entry",
        "norm",
        "tap",
        "gram",
        "live qk",
        "live v",
        "softmax",
        "score",
        "gate",
        "load",
        "gather",
        "store",
        "copy",
        "depthwise tap",
        "depthwise tap of a group",
        "turn",
        "mean",
        "resize",
        "mix",
    ]


def test_a_product_counts_entries_where_they_are_kept_and_the_whole_matrix_where_that_is():
    sparse = torch.zeros(4, 6)
    sparse[1, 2] = sparse[3, 0] = 1
    counts = cpu.product_quantities(cpu.pack(sparse), vectors=10, groups=3)
    assert counts == {"row": 40, "row of a group": 12, "entry": 20, "entry of a group": 6}
    counts = cpu.product_quantities(cpu.pack(torch.ones(4, 6)), vectors=10, groups=3)
    assert counts == {"row": 40, "row of a group": 12, "dense": 240}


def test_short_rows_share_a_group():
    lanes = cpu.LANES[cpu.isa()]
    assert cpu.pixel_groups(1, lanes) == (1, 1)
    assert cpu.pixel_groups(2, lanes) == (2, 1)
    vectors, groups = cpu.pixel_groups(8, 10 * lanes)
    assert vectors == 80
    assert groups < vectors
