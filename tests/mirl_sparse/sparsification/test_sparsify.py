"""A sparsified network gives the same results as the dense one, whatever the network is."""

import copy
import io
import pickle
from dataclasses import dataclass

import pytest
import torch
from sparsifying import (
    IMAGE,
    Block,
    DenseIsFree,
    SparseIsFree,
    Zoo,
    implementations,
    pruned,
    rand,
    same,
    sparsify,
)
from torch import Tensor, nn
from torch.nn.utils import prune

import mirl_sparse
from mirl_sparse import SparseRestorer, UserError


def test_every_kind_of_layer_is_swapped_and_gives_the_same(zoo):
    before = copy.deepcopy(zoo.state_dict())
    sparsified = sparsify(zoo, IMAGE)
    same(sparsified, zoo, IMAGE)
    assert implementations(sparsified) == {
        "head": "sparse convolution",
        "body.0": "sparse convolution",
        "body.1": "dense",
        "body.3": "sparse 1x1",
        "shared": "sparse convolution",
        "down": "sparse convolution",
        "depthwise": "sparse depthwise",
        "norm": "dense",
        "mix": "sparse linear",
        "attention": "sparse projections",
        "up": "sparse sub-pixel convolution",
        "tail": "sparse convolution",
    }
    assert type(zoo.head) is nn.Conv2d  # the original is left as it was
    for name, value in zoo.state_dict().items():
        assert torch.equal(value, before[name])
    for words in ("body.1", "BatchNorm2d has no sparse form", "sparse is faster", "10 of 12 swapped"):
        assert words in str(sparsified.report)


def test_a_network_is_sparsified_without_an_example(zoo):
    sparsified = sparsify(zoo)
    same(sparsified, zoo, IMAGE)
    assert implementations(sparsified)["head"] == "sparse convolution"


def test_a_sparsified_network_takes_other_sizes_than_the_example(zoo):
    sparsified = sparsify(zoo, IMAGE)
    for shape in ((1, 3, 8, 8), (3, 3, 40, 6)):
        same(sparsified, zoo, rand(*shape))


def test_promptir_becomes_a_restorer(network):
    image = torch.rand(1, 3, 24, 32)
    sparsified = sparsify(network, image)
    assert isinstance(sparsified, SparseRestorer)
    assert set(implementations(sparsified).values()) == {"SparseRestorer"}
    torch.testing.assert_close(sparsified(image), network(image), atol=1e-5, rtol=0)


class AsksItsLayers(nn.Module):
    """A network that reads attributes of its layers and calls some by name or with more than their input."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.named, self.plain = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.block = Block(4, 2)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.named(input=self.read(x.to(self.read.weight.dtype)))) / self.read.out_channels
        x = self.up(self.block(x), output_size=[2 * n for n in x.shape[2:]]) * self.block.scale
        x = x + self.read.weight.mean() + self.block.attn.qkv.weight.mean()
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(query=tokens, key=tokens, value=tokens)[0]


def test_a_network_may_read_its_layers_and_layers_called_by_name_stay_dense():
    dense, x = pruned(AsksItsLayers(), 0.5), rand(1, 4, 6, 6)
    sparsified = sparsify(dense, x)
    layers = {layer.name: layer for layer in sparsified.report.layers}
    assert (
        layers["named"].reason == layers["up"].reason == "it is called with more than its input, or by name"
    )
    assert layers["read"].implementation == layers["plain"].implementation == "sparse 1x1"
    assert layers["block.attn"].implementation == "fused MDTA"
    assert layers["attention"].implementation == "sparse projections"
    same(sparsified, dense, x)


@pytest.mark.parametrize("wrapped", [lambda y: (y, y > 0), lambda y: {"a": [y]}, lambda y: Result(y, "name")])
def test_results_of_any_kind_are_compared(wrapped):
    class Wraps(nn.Module):
        def __init__(self, steepness: float) -> None:
            super().__init__()
            self.conv, self.steepness = nn.Conv2d(3, 3, 3), steepness

        def forward(self, x: Tensor) -> object:
            return wrapped(torch.sin(self.steepness * self.conv(x)))

    assert sparsify(pruned(Wraps(1.0), 0.5), IMAGE).report.comparison.startswith("with the dense network")
    with pytest.raises(UserError, match="so the network makes rounding large"):
        sparsify(pruned(Wraps(1e7), 0.5), IMAGE)


@dataclass
class Result:
    image: Tensor
    name: str


def test_a_network_without_tensors_in_its_result_is_compared_layer_by_layer():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> float:
            return float(self.conv(x).sum())

    dense = pruned(Counts())
    sparsified = sparsify(dense, IMAGE)
    assert implementations(sparsified) == {"conv": "sparse 1x1"}
    assert sparsified.report.comparison.startswith("each module on what it gets from the example input")
    assert "the network gives float, without tensors to compare" in str(sparsified.report)
    with torch.no_grad():
        assert sparsified(IMAGE) == pytest.approx(dense(IMAGE), rel=1e-5)


def test_layers_are_chosen_by_the_prices_of_this_machine(zoo, monkeypatch):
    for prices, implementation in ((SparseIsFree, "sparse convolution"), (DenseIsFree, "dense")):
        monkeypatch.setattr("mirl_sparse.sparsification.cpu.cost_model", prices)
        sparsified = mirl_sparse.sparsify(zoo, IMAGE)
        assert implementations(sparsified)["head"] == implementation
        same(sparsified, zoo, IMAGE)


def test_masks_of_torch_pruning_are_applied():
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
    for conv in (dense[0], dense[2]):
        prune.l1_unstructured(conv, "weight", amount=0.9)
    dense(IMAGE)
    sparsified = sparsify(dense.eval(), IMAGE)
    assert [round(x.density, 2) for x in sparsified.report.layers] == [0.10, 0.10]
    assert prune.is_pruned(dense)
    same(sparsified, dense, IMAGE)


def test_copies_pickles_and_loaded_states_give_the_same(zoo):
    sparsified = sparsify(zoo, IMAGE)
    file = io.BytesIO()
    torch.save(sparsified.state_dict(), file)
    file.seek(0)
    other = sparsify(pruned(Zoo(), 0.6, seed=5), IMAGE)  # another mask: its packed weights are longer
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (
        copy.deepcopy(sparsified),
        pickle.loads(pickle.dumps(sparsified)),
        other,
        sparsified.to(torch.float32).to("cpu"),
    ):
        with torch.no_grad():
            assert torch.equal(twin(IMAGE), sparsified(IMAGE))


def test_a_compiled_network_gives_the_same(zoo):
    torch._dynamo.reset()
    sparsified = sparsify(zoo, IMAGE)
    compiled = torch.compile(sparsified, fullgraph=True, backend="aot_eager")
    for image in (IMAGE, rand(1, 3, 20, 8)):
        same(compiled, zoo, image)


def test_an_exported_network_can_be_saved_and_takes_any_size(zoo):
    sparsified = sparsify(zoo, IMAGE)
    half = {2: 2 * torch.export.Dim("height", min=4, max=99), 3: 2 * torch.export.Dim("width", min=4, max=99)}
    exported = torch.export.export(sparsified, (IMAGE,), dynamic_shapes={"image": half})
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for image in (IMAGE, rand(2, 3, 30, 10)):
        same(loaded, zoo, image)


def test_a_network_may_write_to_its_input():
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x *= 255
            return self.layer(x)

    dense, image = pruned(Scales(), 0.5), rand(1, 3, 8, 8)
    before = image.clone()
    sparsified = sparsify(dense, image)
    assert torch.equal(image, before)
    with torch.no_grad():
        torch.testing.assert_close(sparsified(image.clone()), dense(image.clone()))


def test_modules_that_cannot_be_sparsified_are_refused(zoo):
    for function in (sparsify, mirl_sparse.sparsify):
        with pytest.raises(UserError, match="module is str; expected"):
            function("network.pt")
