"""A whole network on the Triton kernels, in the interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from mirl_sparse.network import PromptIR, PromptIRConfig
from mirl_sparse.restorer import SparseRestorer

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


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 2e-2)])
def test_it_restores_what_the_reference_restores(precision, tolerance):
    torch.manual_seed(0)
    network = PromptIR(CONFIG)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim == 4:
                p *= torch.rand(p.shape) < 0.3
    x = torch.rand(1, 3, 13, 18)
    want = SparseRestorer(network, "reference")(x)
    restored = SparseRestorer(network, "triton", precision=precision)(x)
    assert restored.dtype == torch.float32
    assert float((restored - want).abs().max()) <= tolerance * float((want - x).abs().max())
