"""A checkpoint becomes a ticket that restores as the dense network does."""

import numpy as np
import pytest
import torch

from mirl_sparse import SparseRestorer, UserError, conversion
from mirl_sparse.conversion import convert


@pytest.fixture
def checkpoint(network_of_any_resolution, tmp_path):
    path = tmp_path / "c.ckpt"
    state = network_of_any_resolution.state_dict()
    torch.save({"state_dict": {f"net.{k}": v for k, v in state.items()}}, path)
    return path


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (8, 8), (24, 40), (1, 50), (65, 33)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_size_equals_the_dense_network(network, size, batch):
    x = torch.rand(batch, 3, *size)
    expected = SparseRestorer(network, "reference")(x)
    restorer = SparseRestorer(network, "cpu")
    actual = restorer(x)
    assert actual.shape == x.shape
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert torch.equal(restorer(x), actual)  # deterministic


def test_a_network_is_sent_to_sparsify(network, tmp_path):
    with pytest.raises(UserError, match=r"source is PromptIR; .*mirl_sparse\.sparsify"):
        convert(network, tmp_path / "t.safetensors")


def test_convert_writes_what_restores_alike(network_of_any_resolution, checkpoint, tmp_path):
    report = convert(checkpoint, tmp_path / "t.safetensors")
    assert report.removed > 0
    assert 0 < report.statistics["density"] < 0.15
    x = torch.rand(1, 3, 30, 20)
    expected = SparseRestorer(network_of_any_resolution, "reference")(x)
    actual = SparseRestorer.from_pretrained(tmp_path / "t.safetensors")(x)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_a_result_that_differs_is_refused_and_nothing_is_written(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match=r"c.ckpt: the sparse result differs .* nothing was written"):
        convert(checkpoint, tmp_path / "t.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["c.ckpt"]


def test_the_shipped_ticket_restores():
    """A noisy picture comes out with a tenth of its error."""
    y, x = np.mgrid[:72, :100] / 100
    clean = np.stack([y, x, (x - y) ** 2], -1) * 180 + 40
    noisy = (
        (clean + np.random.default_rng(0).normal(0, 25, clean.shape)).clip(0, 255).round().astype(np.uint8)
    )
    restored = SparseRestorer.from_pretrained().restore(noisy)
    before, after = (((image - clean) ** 2).mean() for image in (noisy, restored))
    assert after < before / 10
