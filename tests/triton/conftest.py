"""Tests of the Triton kernels in Triton's interpreter, which is chosen when triton is imported: `make test` runs them in a
process of their own, with TRITON_INTERPRET=1.
"""

import os

import pytest

INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def _interpreter():
    pytest.importorskip("triton")
    if not INTERPRETS:
        pytest.skip("needs TRITON_INTERPRET=1 before the process starts")
