"""Test any network on the Triton kernels."""

from copy import deepcopy

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

import mirl_sparse
from mirl_kernels.core.triton import Workspace
from mirl_sparse.architectures.promptir.network import TransformerBlock
from mirl_sparse.errors import UserError
from mirl_sparse.sparsification import triton as gpu_sparsification
from mirl_sparse.sparsification.forward import forwards


class Net(nn.Module):
    """Convolutions of several geometries, a linear layer over pixels, and a block of Restormer's."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.block = TransformerBlock(8, 2, 2.0)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2)
        self.one = nn.Conv2d(12, 8, 1)
        self.mix = nn.Linear(8, 5)
        self.up = nn.ConvTranspose2d(5, 3, 2, stride=2)

    def forward(self, x):
        x = self.one(torch.relu(self.down(self.block(self.head(x)))))
        return {"image": self.up(self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))}


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p *= torch.rand(p.shape) < 0.3
    return net


def faster(monkeypatch, *kinds):
    """Pretend that modules of these kinds take less time than others, which the interpreter never shows."""

    def seconds(call, replayed):
        call()
        return 1 if isinstance(call.func, kinds) else 2

    monkeypatch.setattr(gpu_sparsification, "seconds", seconds)


SPARSE = nn.Sequential, gpu_sparsification.ImageOp, gpu_sparsification.TokenOp


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 2e-2)])
def test_a_sparsified_network_gives_the_same_result(net, precision, tolerance, device, monkeypatch):
    faster(monkeypatch, *SPARSE)
    x = torch.rand(1, 3, 14, 18)
    want = net(x)["image"].detach()
    tolerance = tolerance if device == "cpu" else 2e-2  # what stays dense is in TF32 there
    sparsified = mirl_sparse.sparsify(net, x, backend="triton", precision=precision)
    dtype = getattr(torch, precision)
    got = sparsified(x.to(device, dtype))["image"]
    assert got.dtype == dtype
    assert float((got.cpu().float() - want).abs().max()) <= tolerance * float(want.abs().max())
    runs_as = {layer.name: layer.implementation for layer in sparsified.report.layers}
    assert runs_as == {
        "head": "sparse convolution",
        "block.attn": "fused MDTA",
        "block.ffn": "fused GDFN",
        "down": "sparse convolution",
        "one": "sparse 1x1",
        "mix": "sparse linear",
        "up": "dense",
    }
    assert all(
        layer.sparse_ms == 1e3 and layer.dense_ms == 2e3
        for layer in sparsified.report.layers
        if "conv" in layer.implementation
    )
    assert "ConvTranspose2d has no sparse form" in str(sparsified.report)


def test_ops_of_a_network_share_memory_that_a_copy_does_not_share(net, monkeypatch):
    faster(monkeypatch, *SPARSE)
    sparsified = mirl_sparse.sparsify(net, torch.rand(1, 3, 14, 18), backend="triton")
    copied = deepcopy(sparsified)
    shared = [
        {part.workspaces for f in forwards(n) for part in f.op.modules() if hasattr(part, "workspaces")}
        for n in (sparsified, copied)
    ]
    assert [len(workspaces) for workspaces in shared] == [1, 1]
    assert shared[0] != shared[1]
    x = torch.rand(1, 3, 14, 18).to(sparsified.head.weight)
    assert torch.equal(copied(x)["image"], sparsified(x)["image"])  # packed anew from the copy's weights
    assert all(f._packs for f in forwards(copied))


def test_the_output_of_a_linear_layer_can_be_viewed_as_pytorchs(device, monkeypatch):
    faster(monkeypatch, *SPARSE)
    linear, x = nn.Linear(6, 5), torch.rand(2, 7, 6)
    sparsified = mirl_sparse.sparsify(nn.Sequential(linear), x, backend="triton", precision="float32")
    assert isinstance(sparsified[0].forward.op, gpu_sparsification.TokenOp)
    torch.testing.assert_close(
        sparsified(x.to(device)).view(2, 35).cpu(), linear(x).view(2, 35).detach(), atol=1e-2, rtol=0
    )


def test_layers_that_are_slower_sparse_stay_dense(net, device, monkeypatch):
    faster(monkeypatch, nn.Conv2d, nn.Linear, TransformerBlock)
    x = torch.rand(1, 3, 14, 18)
    sparsified = mirl_sparse.sparsify(net, x, backend="triton", precision="float32")
    rows = {layer.name: layer for layer in sparsified.report.layers}
    block = rows.pop("block")  # whose layers are compared one by one
    assert block.implementation == "layer by layer"
    assert block.reason == "not fused as a Restormer block: layer by layer is faster"
    assert "block.attn.qkv" in rows
    assert {layer.implementation for layer in rows.values()} == {"dense"}
    assert type(sparsified.head) is nn.Conv2d
    assert torch.allclose(sparsified(x.to(device))["image"].cpu(), net(x)["image"], atol=1e-5)


def test_tap_offsets_follow_the_weights_that_are_loaded(net, device, monkeypatch):
    """They are kept in the workspace, where those of the weights before must not be found."""
    faster(monkeypatch, *SPARSE)
    torch.manual_seed(1)
    other = deepcopy(net)
    with torch.no_grad():
        for half, name in ((net.block.attn, "qkv_dwconv"), (net.block.ffn, "dwconv")):
            weight = getattr(half, name).weight
            weight.zero_()[:, :, 0, 0] = torch.randn(len(weight), 1)
            moved = getattr(getattr(other.block, "attn" if name == "qkv_dwconv" else "ffn"), name).weight
            moved.zero_()[:, :, 2, 1] = torch.randn(len(weight), 1)  # as many taps, at another place
    x = torch.rand(1, 8, 14, 18)
    sparsified, expected = (
        mirl_sparse.sparsify(nn.Sequential(n.block), x, backend="triton", precision="float32")
        for n in (net, other)
    )
    assert [layer.implementation for layer in sparsified.report.layers] == ["fused MDTA", "fused GDFN"]
    workspace = Workspace()
    monkeypatch.setattr(gpu_sparsification, "workspace", lambda device, tiles: workspace)
    x = x.to(device)
    before = sparsified(x)
    sparsified.load_state_dict(expected.state_dict())
    after = sparsified(x)
    assert not torch.allclose(after, before, atol=1e-3)
    monkeypatch.setattr(gpu_sparsification, "workspace", lambda device, tiles: Workspace())
    assert torch.equal(after, expected(x))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1)])
def test_layers_take_all_shapes_and_layouts_that_dense_ones_take(size, device, monkeypatch):
    faster(monkeypatch, *SPARSE)
    net = nn.Sequential(
        nn.Conv2d(4, 6, 1), nn.Conv2d(6, 1, 3, padding=1), nn.Flatten(1), nn.Linear(size[0] * size[1], 3)
    )
    x = torch.rand(1, 4, *size).to(memory_format=torch.channels_last)
    sparsified = mirl_sparse.sparsify(net, x, backend="triton", precision="float32")
    assert {layer.implementation for layer in sparsified.report.layers} == {
        "sparse 1x1",
        "sparse convolution",
        "sparse linear",
    }
    assert torch.allclose(sparsified(x.to(device)).cpu(), net(x), atol=2e-3)
    first = sparsified[0]
    assert torch.equal(first(x[0].to(device)), first(x.to(device))[0])  # without a batch


def test_promptir_becomes_a_restorer(network, device):
    x = torch.rand(1, 3, 8, 16)
    sparsified = mirl_sparse.sparsify(network, backend="triton", precision="float32")
    want = mirl_sparse.SparseRestorer(network, "reference")(x)
    assert sparsified.backend == "triton"
    assert float((sparsified(x.to(device)).cpu() - want).abs().max()) <= 1e-4 * float((want - x).abs().max())
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_unknown_backends_and_precisions_are_refused(net):
    with pytest.raises(UserError, match=r'backend is "cuda"; expected "cpu" or "triton"'):
        mirl_sparse.sparsify(net, backend="cuda")
    with pytest.raises(UserError, match=r'precision is "half"; expected one of float16'):
        mirl_sparse.sparsify(net, backend="triton", precision="half")
    with pytest.raises(UserError, match=r'precision is "float16" on backend "cpu"; expected "float32"'):
        mirl_sparse.sparsify(net, precision="float16")
