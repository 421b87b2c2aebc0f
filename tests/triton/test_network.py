"""A whole network on the Triton kernels, in the interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from mirl_sparse.restorer import SparseRestorer


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 2e-2)])
def test_it_restores_what_the_reference_restores(network, precision, tolerance, device):
    x = torch.rand(1, 3, 13, 18)
    want = SparseRestorer(network, "reference")(x)
    restored = SparseRestorer(network.to(device), "triton", precision=precision)(x.to(device)).cpu()
    assert restored.dtype == torch.float32
    assert float((restored - want).abs().max()) <= tolerance * float((want - x).abs().max())


def test_it_gives_the_same_bits_every_time_and_replayed_as_a_graph(network, device):
    if device != "cuda":
        pytest.skip("graphs want a GPU")
    restorer = SparseRestorer(network.to(device), "triton")
    images = [torch.rand(1, 3, 40, 56, device=device) for _ in range(2)]
    first = [restorer(image) for image in images]  # the second run records the graph, those after replay it
    memory = torch.cuda.memory_allocated()
    for i in range(20):
        assert torch.equal(restorer(images[i % 2]), first[i % 2])
    assert torch.cuda.memory_allocated() <= memory + 2**20
    other = restorer(torch.rand(1, 3, 16, 16, device=device))
    assert other.isfinite().all()
    assert torch.equal(restorer(images[0]), first[0])
