"""Tests of the Triton kernels: in Triton's interpreter where TRITON_INTERPRET=1, which is read when triton is imported, so that `make
test` runs them in a process of their own; else on the GPU, `pytest -m gpu tests/triton`.
"""

import os
from pathlib import Path

import pytest
import torch

from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items):
    for item in items:
        if not INTERPRETS and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device():
    pytest.importorskip("triton")
    if INTERPRETS:
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("no GPU, and TRITON_INTERPRET=1 was not set before the process started")
    return "cuda"


CONFIG = PromptIRConfig(
    8,
    (1, 1, 1, 1),
    1,
    heads=(1, 1, 2, 2),
    prompt_dims=(4, 4, 8),
    prompt_sizes=(4, 4, 4),
    prompt_count=2,
    unused_layers=False,
)


@pytest.fixture
def network():
    """Tiny, three in ten of its weights."""
    torch.manual_seed(0)
    network = PromptIR(CONFIG)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim == 4:
                p *= torch.rand(p.shape) < 0.3
    return network
