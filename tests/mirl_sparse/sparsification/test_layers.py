"""Convolutions, linear layers and attention are swapped one by one, and say why where they are not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsifying import IMAGE, Block, DenseIsFree, implementations, pruned, rand, same, sparsify
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import mirl_sparse
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_sparse import SparseRestorer
from mirl_sparse.performance.cost import CostModel


def test_a_layer_that_is_faster_dense_stays_so(zoo):
    sparsified = sparsify(zoo, IMAGE, DenseIsFree())
    rows = {x.name: x for x in sparsified.report.layers}
    assert rows["head"].implementation == "dense"
    assert rows["head"].reason == "dense is faster"
    assert rows["head"].sparse_ms > rows["head"].dense_ms
    assert type(sparsified.head) is nn.Conv2d


@pytest.mark.parametrize(
    ("layers", "implementation"),
    [
        ([nn.Conv2d(8, 8, 3), nn.ReLU()], "sparse convolution + ReLU"),
        ([nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.GELU()], "sparse convolution + GELU"),
        (
            [nn.Conv2d(8, 8, 3), nn.PixelShuffle(2), nn.LeakyReLU(0.2)],
            "sparse convolution + PixelShuffle + LeakyReLU",
        ),
        ([nn.Conv2d(8, 2, 3, padding=1), nn.PixelUnshuffle(2)], "sparse convolution + PixelUnshuffle"),
        ([nn.Conv2d(8, 8, 1), nn.LeakyReLU(0.1)], "sparse 1x1 + LeakyReLU"),
        ([nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()], "sparse depthwise + ReLU"),
        ([nn.ConvTranspose2d(8, 8, 2, 2), nn.GELU()], "sparse sub-pixel convolution + GELU"),
        ([nn.Linear(8, 8), nn.GELU()], "sparse linear + GELU"),
        ([nn.Conv2d(8, 8, 1), nn.ReLU(), nn.GELU()], "sparse 1x1 + ReLU"),
        ([nn.Conv2d(8, 8, 1), nn.GELU(approximate="tanh")], "sparse 1x1"),
        ([nn.Conv2d(8, 8, 1), nn.LeakyReLU(-0.1)], "sparse 1x1"),
        ([nn.Conv2d(8, 8, 1), nn.Sigmoid(), nn.ReLU()], "sparse 1x1"),
    ],
)
def test_activations_and_shuffles_are_absorbed_by_the_layer_before_them(layers, implementation):
    dense = pruned(nn.Sequential(*layers))
    sparsified = sparsify(dense, rand(2, 8, 10, 8))
    assert implementations(sparsified) == {"0": implementation}
    same(sparsified, dense, rand(1, 8, 12, 8))


def test_activations_behind_nested_or_shared_layers_still_run():
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


def test_a_layer_that_also_runs_without_its_activation_gives_its_own_result():
    class Peek(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) + self.body[0](x)

    for dense in (pruned(Peek()), pruned(nn.Sequential(*[nn.Conv2d(3, 3, 1), nn.ReLU()] * 2))):
        sparsified = sparsify(dense, IMAGE)
        assert set(implementations(sparsified).values()) == {"sparse 1x1 + ReLU"}
        same(sparsified, dense, IMAGE)


sides = st.integers(1, 4)


@settings(max_examples=150)
@given(
    st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    st.tuples(sides, sides),
    st.tuples(sides, sides),
    st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.just("same"), st.just("valid")),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from([(1, 6), (2, 6), (3, 6), (6, 6), (6, 12)]),
    st.booleans(),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.booleans(),
)
def test_convolutions_of_any_geometry_give_the_same(
    mode, kernel, stride, padding, dilation, groups, bias, density, batched
):
    if padding == "same":
        stride = (1, 1)
    conv = nn.Conv2d(6, groups[1], kernel, stride, padding, dilation, groups[0], bias, mode)
    x = rand(*((2,) if batched else ()), 6, 13, 17)
    sparsified = sparsify(nn.Sequential(pruned(conv, density)))
    assert sparsified.report.layers[0].implementation.startswith("sparse")
    same(sparsified, conv, x)


def test_an_error_of_a_sparse_form_is_raised(monkeypatch):
    def fail(self, x):
        raise RuntimeError("the kernel is broken")

    monkeypatch.setattr(PackedPointwise, "forward", fail)
    with pytest.raises(RuntimeError, match="the kernel is broken"):
        sparsify(pruned(nn.Sequential(nn.Conv2d(3, 3, 1))), IMAGE)


def test_prices_are_only_measured_where_layers_are_compared(network, monkeypatch):
    def measure() -> CostModel:
        raise AssertionError("prices are not needed")

    monkeypatch.setattr("mirl_sparse.sparsification.cpu.cost_model", measure)
    assert isinstance(mirl_sparse.sparsify(network), SparseRestorer)
    assert set(implementations(mirl_sparse.sparsify(pruned(Block(), 0.5))).values()) == {
        "fused MDTA",
        "fused GDFN",
    }
    with pytest.raises(AssertionError, match="prices are not needed"):
        mirl_sparse.sparsify(nn.Sequential(nn.Conv2d(3, 3, 1)))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class WeightReader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.inner.weight)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Standardised(4, 4, 1), "its own forward"),
        (parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), "its weight is computed"),
        (nn.Conv2d(4, 4, 1).double(), "its weight is torch.float64 on cpu"),
        (nn.ConvTranspose2d(4, 4, 3, stride=(1, 2)), "strides (1, 2)"),
        (WeightReader(), "the example input never calls it"),
        (nn.PReLU(), "PReLU has no sparse form"),
    ],
)
def test_layers_without_a_sparse_form_stay_dense_and_say_why(layer, reason):
    dense = pruned(nn.Sequential(layer), 1.0)
    x = rand(1, 4, 6, 6).to(next(layer.parameters()).dtype)
    sparsified = sparsify(dense, x)
    assert [x.implementation for x in sparsified.report.layers] == ["dense"]
    assert reason in sparsified.report.layers[0].reason
    same(sparsified, dense, x)


def test_hooks_of_a_swapped_layer_are_called():
    dense = pruned(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
    dense[0].register_forward_hook(lambda module, args, result: result + 1)
    sparsified = sparsify(dense, rand(1, 4, 6, 6))
    assert implementations(sparsified) == {"0": "sparse 1x1 + ReLU"}
    same(sparsified, dense, rand(1, 4, 6, 6))


def test_conv3d_stays_dense():
    dense = pruned(nn.Sequential(nn.Conv3d(2, 2, 3)))
    assert sparsify(dense, rand(1, 2, 5, 5, 5)).report.layers[0].reason == "Conv3d has no sparse form"


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kdim", [None, 5])
def test_sparse_attention_takes_all_arguments_of_the_dense_layer(batch_first, kdim):
    dense = pruned(nn.MultiheadAttention(12, 3, kdim=kdim, vdim=kdim, batch_first=batch_first), 0.5)
    sparsified = sparsify(dense)
    q, k = rand(2, 7, 12), rand(2, 9, kdim or 12)
    if not batch_first:
        q, k = q.transpose(0, 1), k.transpose(0, 1)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    for kwargs in (
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"key_padding_mask": padding},
        {"attn_mask": rand(7, 9)},
        {"attn_mask": rand(6, 7, 9)},
        {
            "attn_mask": torch.ones(7, 9, dtype=torch.bool).triu(3),
            "key_padding_mask": padding,
            "need_weights": False,
        },
    ):
        with torch.no_grad():
            for got, expected in zip(sparsified(q, k, k, **kwargs), dense(q, k, k, **kwargs), strict=True):
                assert (got is None) == (expected is None)
                if got is not None:
                    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for attention in (sparsified, dense):
        with pytest.raises(RuntimeError, match="attn_mask"):
            attention(q, k, k, is_causal=True)
    single = sparsify(dense)(rand(7, 12), rand(9, kdim or 12), rand(9, kdim or 12))
    with torch.no_grad():
        torch.testing.assert_close(
            single, dense(rand(7, 12), rand(9, kdim or 12), rand(9, kdim or 12)), atol=1e-5, rtol=1e-5
        )


def test_attention_with_added_keys_stays_dense():
    dense = pruned(nn.MultiheadAttention(12, 3, add_bias_kv=True))
    (row,) = sparsify(dense).report.layers
    assert row.implementation == "dense"
    assert row.reason == "attention with add_bias_kv or add_zero_attn has no sparse form"


def test_attention_is_priced_and_left_where_dense_is_faster():
    dense = pruned(nn.MultiheadAttention(12, 3))
    assert [x.reason for x in sparsify(dense, prices=DenseIsFree()).report.layers] == ["dense is faster"]


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
def test_transformer_encoders_of_pytorch_are_sparsified(example):
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
    dense, x = pruned(nn.TransformerEncoder(layer, 2)), rand(2, 7, 12)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    sparsified = sparsify(dense, (x, None, padding) if example else None)
    assert [x.implementation for x in sparsified.report.layers].count("sparse projections") == 2
    with torch.no_grad():
        torch.testing.assert_close(sparsified(x), dense(x), atol=1e-5, rtol=1e-5)
        got, expected = (m(x, src_key_padding_mask=padding)[~padding] for m in (sparsified, dense))
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
