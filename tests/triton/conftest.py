"""Tests of the Triton kernels: in Triton's interpreter where TRITON_INTERPRET=1, which is read when triton is imported, so that `make
test` runs them in a process of their own; else on the GPU, `pytest -m gpu tests/triton`.
"""

import os
from pathlib import Path

import pytest
import torch

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
