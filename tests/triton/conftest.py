"""Set up the tests of the Triton kernels.

With TRITON_INTERPRET=1 they run in Triton's interpreter. The variable is read when triton is imported, so
`make test` runs these tests in a process of their own. Without the variable they run on a GPU
(`pytest -m gpu tests/triton`), and are skipped where there is none.
"""

import os
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.setting import TINY
from mirl_sparse.architectures.promptir.network import PromptIR

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"


NO_GPU = "Triton's kernels need a GPU, or TRITON_INTERPRET=1 set before the process starts; see `make test`"


def pytest_collection_modifyitems(items):
    if INTERPRETS:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:  # the hook gets the items of all folders
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU))


@pytest.fixture
def device():
    return "cpu" if INTERPRETS else "cuda"


@pytest.fixture
def network():
    """A tiny network with three in ten of its weights."""
    torch.manual_seed(0)
    network = PromptIR(TINY)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim == 4:
                p *= torch.rand(p.shape) < 0.3
    return network
