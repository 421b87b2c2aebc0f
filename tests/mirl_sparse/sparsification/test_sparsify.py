"""sparsify(module): the same results, sparse, whatever the network."""

import copy
import io
import pickle
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from mirl_kernels.errors import BackendError
from mirl_kernels.ops.block import PackedBlock
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.conv_transpose import PackedConvTranspose
from mirl_kernels.ops.depthwise import PackedDepthwise
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.linear import PackedLinear
from mirl_kernels.ops.mdta import PackedMDTA
from mirl_kernels.ops.naf import PackedNAF
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.prompt import PackedPrompt
from mirl_sparse import SparseRestorer, UserError, sparsify
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.performance.cost import CostModel


class SparseIsFree(CostModel):
    """Prices by which every layer that can be swapped is."""

    def __init__(self) -> None:
        super().__init__({})

    def seconds(self, quantities) -> float:
        return float("torch call" in quantities)


class DenseIsFree(SparseIsFree):
    def seconds(self, quantities) -> float:
        return float("torch call" not in quantities)


@pytest.fixture(autouse=True)
def sparse_is_free(monkeypatch):
    monkeypatch.setattr("mirl_sparse.sparsification.sparsify.cost_model", SparseIsFree)


def pruned(module: nn.Module, density: float = 0.2, seed: int = 0) -> nn.Module:
    """Random weights of which a share is kept."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.ndim > 1 else 0.1) + (p.ndim == 1))
            if p.ndim > 1:
                p.mul_(torch.rand(p.shape, generator=g) < density)
    return module.eval()


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def same(converted: nn.Module, dense: nn.Module, *args) -> None:
    with torch.no_grad():
        expected, got = dense(*args), converted(*args)
    torch.testing.assert_close(got, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def implementations(converted: nn.Module) -> dict[str, str]:
    return {x.name: x.implementation for x in converted.report.layers}


class Zoo(nn.Module):
    """A bit of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)
        )
        self.shared = nn.Conv2d(8, 8, (3, 5), padding="same", dilation=(1, 2))
        self.down = nn.Conv2d(8, 12, 2, stride=2, bias=False)
        self.depthwise = nn.Conv2d(12, 24, 7, padding=3, groups=12)
        self.norm, self.mix = nn.LayerNorm(24), nn.Linear(24, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.up = nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1)
        self.tail = nn.Conv2d(8, 3, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.head(image)
        x = self.shared(self.shared(x + self.body(x)))
        y = self.depthwise(self.down(x))
        tokens = self.mix(self.norm(y.flatten(2).transpose(1, 2)))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        y = tokens.transpose(1, 2).unflatten(-1, y.shape[2:])
        return self.tail(F.pad(x + self.up(y), (1, 1, 1, 1)))


@pytest.fixture
def zoo() -> nn.Module:
    return pruned(Zoo())


IMAGE = rand(2, 3, 14, 22)


def test_every_kind_of_layer_is_swapped_and_answers_the_same(zoo):
    before = copy.deepcopy(zoo.state_dict())
    converted = sparsify(zoo, IMAGE)
    same(converted, zoo, IMAGE)
    assert implementations(converted) == {
        "head": "sparse convolution", "body.0": "sparse convolution", "body.1": "dense", "body.3": "sparse 1x1",
        "shared": "sparse convolution", "down": "sparse convolution", "depthwise": "sparse depthwise", "norm": "dense",
        "mix": "sparse linear", "attention": "sparse projections", "up": "sparse sub-pixel convolution",
        "tail": "sparse convolution",
    }  # fmt: skip
    assert type(zoo.head) is nn.Conv2d  # the original is left as it was
    for name, value in zoo.state_dict().items():
        assert torch.equal(value, before[name])
    for words in ("body.1", "BatchNorm2d has no sparse form", "sparse is faster", "10 of 12 swapped"):
        assert words in str(converted.report)


def test_without_an_example_it_converts_as_well(zoo):
    converted = sparsify(zoo)
    same(converted, zoo, IMAGE)
    assert implementations(converted)["head"] == "sparse convolution"


def test_it_takes_other_sizes_than_the_example(zoo):
    converted = sparsify(zoo, IMAGE)
    for shape in ((1, 3, 8, 8), (3, 3, 40, 6)):
        same(converted, zoo, rand(*shape))


def test_a_layer_that_is_faster_dense_stays_so(zoo, monkeypatch):
    monkeypatch.setattr("mirl_sparse.sparsification.sparsify.cost_model", DenseIsFree)
    converted = sparsify(zoo, IMAGE)
    rows = {x.name: x for x in converted.report.layers}
    assert rows["head"].implementation == "dense"
    assert rows["head"].reason == "dense is faster"
    assert rows["head"].sparse_ms > rows["head"].dense_ms
    assert type(converted.head) is nn.Conv2d


@pytest.mark.parametrize(("layers", "implementation"), [
    ([nn.Conv2d(8, 8, 3), nn.ReLU()], "sparse convolution + ReLU"),
    ([nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.GELU()], "sparse convolution + GELU"),
    ([nn.Conv2d(8, 8, 3), nn.PixelShuffle(2), nn.LeakyReLU(0.2)], "sparse convolution + PixelShuffle + LeakyReLU"),
    ([nn.Conv2d(8, 2, 3, padding=1), nn.PixelUnshuffle(2)], "sparse convolution + PixelUnshuffle"),
    ([nn.Conv2d(8, 8, 1), nn.LeakyReLU(0.1)], "sparse 1x1 + LeakyReLU"),
    ([nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()], "sparse depthwise + ReLU"),
    ([nn.ConvTranspose2d(8, 8, 2, 2), nn.GELU()], "sparse sub-pixel convolution + GELU"),
    ([nn.Linear(8, 8), nn.GELU()], "sparse linear + GELU"),
    ([nn.Conv2d(8, 8, 1), nn.ReLU(), nn.GELU()], "sparse 1x1 + ReLU"),
    ([nn.Conv2d(8, 8, 1), nn.GELU(approximate="tanh")], "sparse 1x1"),
    ([nn.Conv2d(8, 8, 1), nn.LeakyReLU(-0.1)], "sparse 1x1"),
    ([nn.Conv2d(8, 8, 1), nn.Sigmoid(), nn.ReLU()], "sparse 1x1"),
])  # fmt: skip
def test_what_follows_a_layer_is_part_of_its_store(layers, implementation):
    dense = pruned(nn.Sequential(*layers))
    converted = sparsify(dense, rand(2, 8, 10, 8))
    assert implementations(converted) == {"0": implementation}
    same(converted, dense, rand(1, 8, 12, 8))


def test_what_follows_a_nested_or_shared_layer_stays_right():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.body = nn.Sequential(self.first, nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    inner = nn.Sequential(nn.Conv2d(3, 3, 1))
    for dense in (
        pruned(nn.Sequential(inner, nn.ReLU())),
        pruned(Named()),
        pruned(nn.Sequential(nn.Sequential(), nn.ReLU())),
    ):
        same(sparsify(dense, IMAGE), dense, IMAGE)


def test_activations_stay_where_a_layer_is_used_without_them():
    class Peek(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + self.body[0](x)

    for dense in (pruned(Peek()), pruned(nn.Sequential(*[nn.Conv2d(3, 3, 1), nn.ReLU()] * 2))):
        converted = sparsify(dense, IMAGE)
        assert set(implementations(converted).values()) == {"sparse 1x1"}
        same(converted, dense, IMAGE)


sides = st.integers(1, 4)


@settings(max_examples=150)
@given(st.sampled_from(["zeros", "reflect", "replicate", "circular"]), st.tuples(sides, sides), st.tuples(sides, sides),
       st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.just("same"), st.just("valid")),
       st.tuples(st.integers(1, 2), st.integers(1, 2)), st.sampled_from([(1, 6), (2, 6), (3, 6), (6, 6), (6, 12)]),
       st.booleans(), st.sampled_from([0.0, 0.1, 1.0]), st.booleans())  # fmt: skip
def test_conv2d_of_any_geometry(mode, kernel, stride, padding, dilation, groups, bias, density, batched):
    if padding == "same":
        stride = (1, 1)
    conv = nn.Conv2d(6, groups[1], kernel, stride, padding, dilation, groups[0], bias, mode)
    x = rand(*((2,) if batched else ()), 6, 13, 17)
    converted = sparsify(nn.Sequential(pruned(conv, density)))
    assert converted.report.layers[0].implementation.startswith("sparse")
    same(converted, conv, x)


class Norm(nn.Module):
    def __init__(self, channels: int, centred: bool, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.body, self.small = nn.Module(), epsilon
        self.body.weight = nn.Parameter(torch.ones(channels))
        if centred:
            self.body.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
        bias = getattr(self.body, "bias", None)
        x = (
            (x if bias is None else x - mean)
            / torch.sqrt(variance + self.small)
            * self.body.weight[:, None, None]
        )
        return x if bias is None else x + bias[:, None, None]


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(1, (len(self.temperature), -1)).flatten(3)
            for t in self.qkv_dwconv(self.qkv(x)).chunk(3, 1)
        )
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.project_out((logits.softmax(-1) @ v).reshape(x.shape))


class FeedForward(nn.Module):
    def __init__(self, channels: int, bias: bool) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 4 * channels, 1, bias=bias)
        self.dwconv = nn.Conv2d(4 * channels, 4 * channels, 3, padding=1, groups=4 * channels, bias=bias)
        self.project_out = nn.Conv2d(2 * channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.dwconv(self.project_in(x)).chunk(2, 1)
        return self.project_out(F.gelu(a) * b)


class Block(nn.Module):
    """A block of Restormer's family; ``scale`` makes it look like one that it is not."""

    def __init__(
        self,
        channels: int = 8,
        heads: int = 2,
        bias: bool = False,
        centred: bool = True,
        scale: float = 1.0,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1, self.attn = Norm(channels, centred, epsilon), Attention(channels, heads, bias)
        self.norm2, self.ffn = Norm(channels, centred, epsilon), FeedForward(channels, bias)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.scale * self.ffn(self.norm2(x))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_blocks_of_restormers_family_are_fused_wherever_they_occur(bias, centred):
    dense = pruned(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ModuleDict({"deep": Block(8, 2, bias, centred)})["deep"]
        ),
        0.5,
    )
    converted = sparsify(dense, IMAGE)
    assert implementations(converted) == {
        "0": "sparse convolution",
        "1.attn": "fused MDTA",
        "1.ffn": "fused GDFN",
    }
    same(converted, dense, IMAGE)


class NAFBlock(nn.Module):
    def __init__(self, channels: int = 8, bias: bool = True, pooled: nn.Module | None = None) -> None:
        super().__init__()
        c = channels
        self.norm1, self.norm2 = nn.LayerNorm(c, eps=1e-6), nn.LayerNorm(c, eps=1e-6)
        self.conv1 = nn.Conv2d(c, 2 * c, 1, bias=bias)
        self.conv2 = nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c, bias=bias)
        self.conv3, self.conv5 = nn.Conv2d(c, c, 1, bias=bias), nn.Conv2d(c, c, 1, bias=bias)
        self.sca = nn.Sequential(pooled or nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1, bias=bias))
        self.conv4 = nn.Conv2d(c, 2 * c, 1, bias=bias)
        self.beta, self.gamma = nn.Parameter(torch.ones(1, c, 1, 1)), nn.Parameter(torch.ones(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        def norm(by: nn.LayerNorm, x: Tensor) -> Tensor:
            return by(x.movedim(1, -1)).movedim(-1, 1)

        left, right = self.conv2(self.conv1(norm(self.norm1, x))).chunk(2, 1)
        x = x + self.conv3(left * right * self.sca(left * right)) * self.beta
        left, right = self.conv4(norm(self.norm2, x)).chunk(2, 1)
        return x + self.conv5(left * right) * self.gamma


@pytest.mark.parametrize("bias", [False, True])
def test_blocks_of_nafnet_are_fused_wherever_they_occur(bias):
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), pruned(NAFBlock(bias=bias), 0.5))
    converted = sparsify(dense.eval(), IMAGE)
    assert implementations(converted) == {"0": "sparse convolution", "1": "fused NAFNet block"}
    same(converted, dense, IMAGE)


def test_blocks_of_nafnet_that_average_over_windows_are_not_fused():
    class Window(nn.Module):
        """Of an image as small as this, the mean."""

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3), keepdim=True)

    converted = sparsify(pruned(NAFBlock(pooled=Window()), 0.5), rand(1, 8, 9, 9))
    assert set(implementations(converted).values()) == {"sparse 1x1", "sparse depthwise", "dense"}


def test_promptir_becomes_a_restorer(network):
    image = torch.rand(1, 3, 24, 32)
    converted = sparsify(network, image)
    assert isinstance(converted, SparseRestorer)
    assert set(implementations(converted).values()) == {"SparseRestorer"}
    torch.testing.assert_close(converted(image), network(image), atol=1e-5, rtol=0)


def test_prompt_blocks_are_fused_wherever_they_occur(network):
    dense = nn.Sequential(nn.Conv2d(3, 16, 1), copy.deepcopy(network.prompt1))
    converted = sparsify(dense.eval(), IMAGE)
    assert implementations(converted) == {"0": "sparse 1x1", "1": "fused prompt"}
    same(converted, dense, IMAGE)


@pytest.mark.parametrize("odd", ["more results than prompts", "prompts that are not square"])
def test_a_prompt_block_of_another_kind_is_not_fused(network, odd):
    block = copy.deepcopy(network.prompt1)
    prompts = block.prompt_param.shape[2]
    if odd.startswith("more"):
        block.conv3x3 = nn.Conv2d(prompts, 4 * prompts, 3, padding=1, bias=False)
    else:
        block.prompt_param = nn.Parameter(torch.rand(*block.prompt_param.shape[:3], 12, 8))
    dense = nn.Sequential(nn.Conv2d(3, 16, 1), block).eval()
    converted = sparsify(dense, IMAGE)
    assert "fused prompt" not in implementations(converted).values()
    same(converted, dense, IMAGE)


def test_weights_read_by_others_are_missed_by_name():
    converted = sparsify(nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(
        AttributeError, match="this PackedConv stands for a layer, whose weight it has no more"
    ):
        converted[0].weight  # noqa: B018
    assert not hasattr(converted[0], "bias")


class AsksItsLayers(nn.Module):
    """A network that reads its layers, calls them by name, or with more than their input, as well as it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.named, self.plain = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.block = Block(4, 2)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.named(input=self.read(x.to(self.read.weight.dtype)))) / self.read.out_channels
        x = self.up(self.block(x), output_size=[2 * n for n in x.shape[2:]]) * self.block.scale
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(query=tokens, key=tokens, value=tokens)[0]


def test_layers_that_a_network_asks_more_of_stay_dense_and_say_why():
    dense, x = pruned(AsksItsLayers(), 0.5), rand(1, 4, 6, 6)
    converted = sparsify(dense, x)
    layers = {layer.name: layer for layer in converted.report.layers}
    assert layers["read"].reason == "the network reads its weight"
    assert (
        layers["named"].reason == layers["up"].reason == "it is called with more than its input, or by name"
    )
    assert layers["plain"].implementation == layers["block.attn.qkv"].implementation == "sparse 1x1"
    assert layers["attention"].implementation == "sparse projections"
    same(converted, dense, x)


def test_a_block_whose_norm_adds_another_number_is_converted_layer_by_layer():
    """As large as noise is, nothing tells the two apart."""
    for epsilon in (1e-6, 1e-3):
        dense = pruned(Block(epsilon=epsilon), 0.5)
        converted = sparsify(dense, rand(1, 8, 9, 9))
        assert "fused MDTA" not in implementations(converted).values()
        for scale in (1, 1e-2, 1e-3):
            same(converted, dense, scale * rand(1, 8, 9, 9))


def test_a_block_with_a_hook_inside_is_converted_layer_by_layer():
    dense, seen = pruned(nn.Sequential(Block(), nn.Conv2d(8, 8, 1), nn.ReLU()), 0.5), []
    for module in (dense[0].ffn, dense[2]):
        module.register_forward_hook(lambda module, args, result: seen.append(type(module)))
    converted = sparsify(dense, rand(1, 8, 9, 9))
    seen.clear()
    same(converted, dense, rand(1, 8, 9, 9))
    assert len(seen) == 4  # two of either network


def test_a_promptir_that_does_more_is_converted_block_by_block(network):
    class Halved(PromptIR):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 0.5).clamp(0, 1)

    dense, image = Halved(network.config), torch.rand(1, 3, 24, 32)
    dense.load_state_dict(network.state_dict())
    converted = sparsify(dense.eval(), image)
    assert "fused MDTA" in implementations(converted).values()
    same(converted, dense, image)


@pytest.mark.parametrize("wrapped", [lambda y: (y, y > 0), lambda y: {"a": [y]}, lambda y: Result(y, "name")])
def test_results_of_any_kind_are_compared(wrapped):
    class Wraps(nn.Module):
        def __init__(self, noise: float) -> None:
            super().__init__()
            self.conv, self.noise = nn.Conv2d(3, 3, 1), noise

        def forward(self, x: Tensor) -> object:
            return wrapped(self.conv(x) + self.noise * torch.rand(1))

    sparsify(pruned(Wraps(0.0), 0.5), IMAGE)
    with pytest.raises(UserError, match="differs from the dense one"):
        sparsify(pruned(Wraps(1.0), 0.5), IMAGE)


@dataclass
class Result:
    image: Tensor
    name: str


def test_a_result_without_tensors_is_refused():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> float:
            return float(self.conv(x).sum())

    with pytest.raises(UserError, match="gives float for the example input; expected tensors"):
        sparsify(pruned(Counts()), IMAGE)


def test_another_default_dtype_changes_nothing():
    dense = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), Block(8)), 0.5)
    torch.set_default_dtype(torch.float64)
    try:
        converted = sparsify(dense, IMAGE)
        same(converted, dense, IMAGE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert implementations(converted) == {
        "0": "sparse convolution",
        "1.attn": "fused MDTA",
        "1.ffn": "fused GDFN",
    }


def test_a_block_that_only_looks_like_one_is_converted_layer_by_layer():
    dense = pruned(Block(scale=0.5), 0.5)
    converted = sparsify(dense, rand(1, 8, 9, 9))
    assert "sparse 1x1" in implementations(converted).values()
    assert "fused MDTA" not in implementations(converted).values()
    same(converted, dense, rand(1, 8, 9, 9))


class Widening(Block):
    """One whose feed-forward layer has twice the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn.project_out = nn.Conv2d(self.ffn.project_out.in_channels, 16, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.norm2(x + self.attn(self.norm1(x))))


def test_a_block_whose_parts_are_of_other_sizes_is_converted_layer_by_layer():
    dense = pruned(Widening(), 0.5)
    converted = sparsify(dense, rand(1, 8, 9, 9))
    assert not {"fused MDTA", "fused GDFN"} & set(implementations(converted).values())
    same(converted, dense, rand(1, 8, 9, 9))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class WeightReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.inner.weight)


@pytest.mark.parametrize(("layer", "reason"), [
    (Standardised(4, 4, 1), "its own forward"),
    (parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), "its weight is computed"),
    (nn.Conv2d(4, 4, 1).double(), "its weight is torch.float64 on cpu"),
    (nn.ConvTranspose2d(4, 4, 3, stride=(1, 2)), "strides (1, 2)"),
    (WeightReader(), "the example input never calls it"),
    (nn.PReLU(), "PReLU has no sparse form"),
])  # fmt: skip
def test_what_has_no_sparse_form_stays_dense_and_says_why(layer, reason):
    dense = pruned(nn.Sequential(layer), 1.0)
    x = rand(1, 4, 6, 6).to(next(layer.parameters()).dtype)
    converted = sparsify(dense, x)
    assert [x.implementation for x in converted.report.layers] == ["dense"]
    assert reason in converted.report.layers[0].reason
    same(converted, dense, x)


def test_a_layer_with_hooks_stays_dense():
    dense = pruned(nn.Sequential(nn.Conv2d(4, 4, 1)))
    dense[0].register_forward_hook(lambda module, args, result: result + 1)
    converted = sparsify(dense, rand(1, 4, 6, 6))
    assert converted.report.layers[0].reason == "it has hooks"
    same(converted, dense, rand(1, 4, 6, 6))


def test_conv3d_stays_dense():
    dense = pruned(nn.Sequential(nn.Conv3d(2, 2, 3)))
    assert sparsify(dense, rand(1, 2, 5, 5, 5)).report.layers[0].reason == "Conv3d has no sparse form"


def test_weights_pruned_by_torch_are_taken_with_their_masks():
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
    for conv in (dense[0], dense[2]):
        prune.l1_unstructured(conv, "weight", amount=0.9)
    dense(IMAGE)
    converted = sparsify(dense.eval(), IMAGE)
    assert [round(x.density, 2) for x in converted.report.layers] == [0.10, 0.10]
    assert prune.is_pruned(dense)
    same(converted, dense, IMAGE)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kdim", [None, 5])
def test_attention_takes_all_arguments_of_pytorchs(batch_first, kdim):
    dense = pruned(nn.MultiheadAttention(12, 3, kdim=kdim, vdim=kdim, batch_first=batch_first), 0.5)
    converted = sparsify(dense)
    q, k = rand(2, 7, 12), rand(2, 9, kdim or 12)
    if not batch_first:
        q, k = q.transpose(0, 1), k.transpose(0, 1)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    for kwargs in ({}, {"need_weights": False}, {"average_attn_weights": False}, {"key_padding_mask": padding},
                   {"attn_mask": rand(7, 9)}, {"attn_mask": rand(6, 7, 9)},
                   {"attn_mask": torch.ones(7, 9, dtype=torch.bool).triu(3), "key_padding_mask": padding, "need_weights": False}):  # fmt: skip
        with torch.no_grad():
            for got, expected in zip(converted(q, k, k, **kwargs), dense(q, k, k, **kwargs), strict=True):
                assert (got is None) == (expected is None)
                if got is not None:
                    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for attention in (converted, dense):
        with pytest.raises(RuntimeError, match="attn_mask"):
            attention(q, k, k, is_causal=True)
    single = sparsify(dense)(rand(7, 12), rand(9, kdim or 12), rand(9, kdim or 12))
    with torch.no_grad():
        torch.testing.assert_close(
            single, dense(rand(7, 12), rand(9, kdim or 12), rand(9, kdim or 12)), atol=1e-5, rtol=1e-5
        )


def test_attention_with_keys_of_its_own_stays_dense():
    dense = pruned(nn.MultiheadAttention(12, 3, add_bias_kv=True))
    assert sparsify(dense).report.layers[0].implementation == "dense"


def test_attention_is_priced_and_left_where_dense_is_faster(monkeypatch):
    monkeypatch.setattr("mirl_sparse.sparsification.sparsify.cost_model", DenseIsFree)
    dense = pruned(nn.MultiheadAttention(12, 3))
    assert [x.reason for x in sparsify(dense).report.layers] == ["dense is faster"]


def test_attention_that_the_example_never_calls_stays_dense():
    class ReadsItsWeights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.attention.in_proj_weight.T

    report = sparsify(pruned(ReadsItsWeights()), rand(5, 12)).report
    assert [x.reason for x in report.layers] == ["the example input never calls it"]


@pytest.mark.parametrize("example", [False, True])
def test_transformer_encoders_of_pytorch_are_converted(example):
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
    dense, x = pruned(nn.TransformerEncoder(layer, 2)), rand(2, 7, 12)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    converted = sparsify(dense, (x, None, padding) if example else None)
    assert [x.implementation for x in converted.report.layers].count("sparse projections") == 2
    with torch.no_grad():
        torch.testing.assert_close(converted(x), dense(x), atol=1e-5, rtol=1e-5)
        got, expected = (m(x, src_key_padding_mask=padding)[~padding] for m in (converted, dense))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_copies_pickles_and_state_dicts_answer_the_same(zoo):
    converted = sparsify(zoo, IMAGE)
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    other = sparsify(pruned(Zoo(), 0.6, seed=5), IMAGE)  # another mask: its packed weights are longer
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (
        copy.deepcopy(converted),
        pickle.loads(pickle.dumps(converted)),
        other,
        converted.to(torch.float32).to("cpu"),
    ):
        with torch.no_grad():
            assert torch.equal(twin(IMAGE), converted(IMAGE))


def test_the_state_of_another_layer_is_refused():
    for one, other in ((nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 3)), (nn.Conv2d(3, 8, 3), nn.Conv2d(3, 9, 3)),
                       (nn.Linear(3, 8), nn.Linear(4, 8)), (nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 1)), (Block(8), Block(16)),
                       (nn.ConvTranspose2d(3, 8, 2, 2), nn.ConvTranspose2d(5, 8, 2, 2)),
                       (nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(8, 8, 3, groups=8)),
                       (nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 5)), (nn.ConvTranspose2d(3, 8, 4, 2), nn.ConvTranspose2d(3, 8, 8, 2))):  # fmt: skip
        a, b = (sparsify(nn.Sequential(pruned(m, 1.0))) for m in (one, other))
        before = copy.deepcopy(a.state_dict())
        with pytest.raises(RuntimeError, match="layer of another shape"):
            a.load_state_dict(b.state_dict())
        for name, value in a.state_dict().items():
            assert torch.equal(value, before[name])


@pytest.mark.parametrize(("name", "value"), [("q_index", 8), ("v_index", -1), ("qkv", 0)])
def test_a_state_that_names_memory_of_others_is_refused(name, value):
    converted = sparsify(pruned(Block(8), 1.0))
    state = converted.state_dict()
    state[f"mdta.{name}"] = torch.full_like(state[f"mdta.{name}"], value)
    with pytest.raises(RuntimeError, match="layer of another shape"):
        converted.load_state_dict(state)


def test_a_state_of_fewer_values_is_refused(network):
    converted = sparsify(nn.Sequential(copy.deepcopy(network.prompt1)))
    with pytest.raises(RuntimeError, match="size mismatch"):
        converted.load_state_dict({"0.linear_bias": torch.zeros(1)}, strict=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_weights_that_were_cast_are_refused(network, dtype):
    for module, channels in (
        (Block(8), 8),
        (copy.deepcopy(network.prompt1), network.prompt1.linear_layer.in_features),
    ):
        converted = sparsify(nn.Sequential(pruned(module, 0.5)))
        with pytest.raises(BackendError, match=f"weights are {dtype}.*expected float32"):
            converted.to(dtype)(rand(1, channels, 9, 9))


def test_compiled_whole_it_answers_the_same(zoo):
    torch._dynamo.reset()
    converted = sparsify(zoo, IMAGE)
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    for image in (IMAGE, rand(1, 3, 20, 8)):
        same(compiled, zoo, image)


def test_exported_it_is_saved_loaded_and_takes_any_size(zoo):
    converted = sparsify(zoo, IMAGE)
    half = {2: 2 * torch.export.Dim("height", min=4, max=99), 3: 2 * torch.export.Dim("width", min=4, max=99)}
    exported = torch.export.export(converted, (IMAGE,), dynamic_shapes={"image": half})
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for image in (IMAGE, rand(2, 3, 30, 10)):
        same(loaded, zoo, image)


def _ops() -> list[tuple[nn.Module, Tensor]]:
    w = lambda *shape: rand(*shape) * (rand(*shape) > 0.5)  # noqa: E731
    x = rand(2, 4, 9, 11)
    ones, zeros = torch.ones(4), torch.zeros(4)
    return [
        (PackedConv(w(6, 4, 3, 3), rand(6), (2, 1), (1, 1, 0, 2)), x),
        (PackedConvTranspose(w(4, 6, 3, 3), rand(6), 2, (1, 1), (1, 1)), x),
        (PackedDepthwise(w(4, 1, 3, 3), rand(4)), x),
        (PackedPointwise(w(5, 4, 1, 1), rand(5)), x),
        (PackedLinear(w(5, 11), rand(5)), x),
        (PackedGDFN(ones, zeros, w(12, 4, 1, 1), w(12, 1, 3, 3), w(4, 6, 1, 1)), x),
        (PackedMDTA(ones, None, w(12, 4, 1, 1), w(12, 1, 3, 3), torch.ones(2, 1, 1), w(4, 4, 1, 1)), x),
        (
            PackedBlock(
                PackedMDTA(ones, None, w(12, 4, 1, 1), w(12, 1, 3, 3), torch.ones(2, 1, 1), w(4, 4, 1, 1)),
                PackedGDFN(ones, zeros, w(12, 4, 1, 1), w(12, 1, 3, 3), w(4, 6, 1, 1)),
            ),
            x,
        ),
        (
            PackedNAF(
                [(ones, zeros, 1e-6)] * 2,
                [w(8, 4, 1, 1), w(8, 1, 3, 3), w(4, 4, 1, 1), w(4, 4, 1, 1), w(12, 4, 1, 1), w(4, 6, 1, 1)],
                [None, rand(8), None, rand(4), None, None],
                rand(4),
                rand(4),
            ),
            x,
        ),
        (PackedPrompt(w(3, 4), rand(3), rand(1, 3, 5, 4, 4), w(5, 5, 3, 3)), x),
    ]


@pytest.mark.parametrize(
    ("op", "x"), _ops(), ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else ""
)
def test_ops_keep_their_promises_to_pytorch(op, x):
    """torch.library.opcheck on every call that the module makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "mirl":
                seen.append((func, args))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Record():
        op(x)
    (func, args), = seen  # fmt: skip
    assert set(torch.library.opcheck(func, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("op", "x"), _ops(), ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else ""
)
def test_ops_take_images_of_any_layout(op, x):
    for layout in (x.transpose(2, 3).contiguous().transpose(2, 3), x.contiguous(memory_format=torch.channels_last),
                   x[:, :, :1].expand_as(x), x[:1, :, :, ::2]):  # fmt: skip
        if not isinstance(op, PackedLinear) or layout.shape[-1] == x.shape[-1]:
            assert torch.equal(op(layout), op(layout.contiguous()))


@pytest.mark.parametrize(
    ("op", "x"), _ops(), ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else ""
)
def test_ops_refuse_what_has_no_implementation(op, x):
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        with pytest.raises(BackendError, match=f"{dtype}.*expected float32"):
            op(x.to(dtype))
    with pytest.raises(BackendError, match="expected"):
        op(x[..., :3, :2] if isinstance(op, PackedLinear) else x[:, :3])
    assert op.to("meta")(x.to("meta")).device.type == "meta"  # as any module's: shapes only


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 3, 5), nn.Conv2d(3, 3, 5, groups=3), nn.ConvTranspose2d(3, 3, 2, 2, 3)]
)
def test_an_image_smaller_than_the_kernel_is_refused(layer):
    converted = sparsify(nn.Sequential(layer))
    for side in (3, 2):
        with pytest.raises(BackendError, match="is smaller than the kernel"):
            converted(rand(1, 3, side, side))
    with pytest.raises(BackendError, match="a pixel or more"):
        converted(rand(0, 3, 9, 9))


def test_a_converted_network_follows_its_dtype_to_a_clear_error(zoo):
    converted = sparsify(zoo, IMAGE).double()
    with pytest.raises(BackendError, match="expected float32"):
        converted(IMAGE.double())


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
    converted = sparsify(dense, image)
    assert torch.equal(image, before)
    with torch.no_grad():
        torch.testing.assert_close(converted(image.clone()), dense(image.clone()))


def test_what_cannot_be_converted_is_refused_in_one_line(zoo):
    with pytest.raises(UserError, match="module is str; expected"):
        sparsify("network.pt")

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + torch.rand(1)

    with pytest.raises(UserError, match="differs from the dense one"):
        sparsify(pruned(Random()), IMAGE)


def test_gradients_are_refused_by_name(zoo):
    x = IMAGE.clone().requires_grad_(True)
    result = sparsify(zoo, IMAGE)(x)
    with pytest.raises(RuntimeError, match="mirl"):
        result.sum().backward()
