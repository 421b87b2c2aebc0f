"""From checkpoint to ticket to restorer, on a small network."""

import pytest
import torch

from mirl_kernels import _cpu
from mirl_sparse import PromptIR, PromptIRConfig, SparseRestorer, UserError, convert
from mirl_sparse.ticket import read_ticket, remove_dead_channels, write_ticket

CONFIG = PromptIRConfig(
    dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, prompt_dims=(4, 4, 8), prompt_sizes=(8, 4, 4)
)
needs_kernels = pytest.mark.skipif(not _cpu.available(), reason="the C++ kernels were not built")


@pytest.fixture
def network() -> PromptIR:
    torch.manual_seed(1)
    net = PromptIR(CONFIG).eval().requires_grad_(False)
    for name, p in net.named_parameters():
        if name.endswith("weight") and p.ndim > 1:
            p *= torch.rand(p.shape) < 0.15
        elif "body" in name:
            p += 0.1 * torch.randn(p.shape)
    return net


def test_dead_channels_leave_without_a_trace(network):
    x = torch.rand(1, 3, 24, 32)
    before = network.double()(x.double())
    assert remove_dead_channels(network) > 0
    assert remove_dead_channels(network) == 0  # a fixpoint
    torch.testing.assert_close(network(x.double()), before, atol=1e-12, rtol=0)


def test_round_trip(network, tmp_path):
    path = tmp_path / "t.safetensors"
    write_ticket(path, network, {"a": 1})
    loaded, statistics = read_ticket(path)
    assert statistics == {"a": 1}
    expected = network.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


@needs_kernels
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


@needs_kernels
def test_convert_writes_what_restores_alike(network, tmp_path):
    torch.save({"state_dict": {f"net.{k}": v for k, v in network.state_dict().items()}}, tmp_path / "c.ckpt")
    report = convert(tmp_path / "c.ckpt", tmp_path / "t.safetensors")
    assert report.removed > 0
    assert 0 < report.statistics["density"] < 0.15
    x = torch.rand(1, 3, 30, 20)
    expected = SparseRestorer(network, "reference")(x)
    actual = SparseRestorer.from_pretrained(tmp_path / "t.safetensors")(x)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_the_shipped_ticket_restores():
    import numpy as np

    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    assert SparseRestorer.from_pretrained().restore(image).shape == image.shape


def test_what_is_no_ticket_is_refused(network, tmp_path):
    write_ticket(tmp_path / "t.safetensors", network, {})
    whole = (tmp_path / "t.safetensors").read_bytes()
    for count in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:count])
        with pytest.raises(UserError, match="cut"):
            SparseRestorer.from_pretrained(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="no such file"):
        SparseRestorer.from_pretrained("nothing")
