"""The description of a network says what each layer is, what it costs and how the C++ kernels run it."""

import pytest
import torch
from torch import nn

from mirl_sparse.tickets import LayerReport, describe

IMPLEMENTATIONS = {
    "patch_embed.proj": "dense 3x3",
    "prompt1.linear_layer": "fused prompt: dense linear layer, once per image",
    "prompt1.conv3x3": "fused prompt: sparse 3x3 of the mixed prompts",
    "encoder_level1.0.attn.qkv": "fused MDTA: layer norm and sparse 1x1 to q, k and v",
    "encoder_level1.0.attn.qkv_dwconv": "fused MDTA: surviving taps of the depthwise 3x3 of q, k and v",
    "encoder_level1.0.attn.project_out": (
        "fused MDTA: sparse 1x1 project_out, alone or composed with the attention"
    ),
    "encoder_level1.0.ffn.project_in": "fused GDFN: layer norm and sparse 1x1 to the halves of the gate",
    "encoder_level1.0.ffn.dwconv": (
        "fused GDFN: surviving taps of the depthwise 3x3 of the halves of the gate"
    ),
    "encoder_level1.0.ffn.project_out": "fused GDFN: sparse 1x1 project_out",
    "down1_2.body.0": "sparse 3x3, its store unshuffles pixels",
    "up4_3.body.0": "sparse 3x3, its store shuffles pixels",
    "reduce_noise_level3": "sparse 1x1",
    "output": "sparse 3x3, its store adds the image",
}


def rows(network) -> dict[str, LayerReport]:
    return {row.name.removesuffix(".weight"): row for row in describe(network).layers}


@pytest.fixture
def thin(network):
    """The network with some dense layers, and the rest so sparse that even its live channels are."""
    torch.manual_seed(0)
    for name, p in network.named_parameters():
        if name.endswith("weight") and p.ndim > 1:
            p.copy_(torch.randn(p.shape) * (torch.rand(p.shape) < 0.3))
        if name.endswith("dwconv.weight"):
            p.copy_(torch.randn(p.shape))
    network.patch_embed.proj.weight.copy_(torch.randn(network.patch_embed.proj.weight.shape))
    return network


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_each_layer_says_what_it_is(thin, name):
    assert rows(thin)[name].implementation == IMPLEMENTATIONS[name]


def test_first_and_last_layer_of_half_resolution_say_how_they_change_resolution(half_resolution_network):
    described = rows(half_resolution_network)
    first, last = described["patch_embed.proj"], described["output"]
    assert first.implementation == "sparse 3x3 of unshuffled pixels, run as 6x6 with stride 2"
    assert last.implementation == "sparse 3x3, its store shuffles pixels and adds the image"
    weight = half_resolution_network.patch_embed.proj.weight
    weight.zero_()
    weight[0] = 1
    weight[:, :10] = 1  # 90 of 108 columns; the kernels take 96 at a time
    first = rows(half_resolution_network)["patch_embed.proj"]
    assert first.implementation == "partly dense 3x3 of unshuffled pixels, run as 6x6 with stride 2"
    assert first.macs == (90 * 8 + 18) * 128 * 128


def test_dense_blocks_are_described_as_dense(network):
    for name, p in network.named_parameters():
        if name.endswith("weight"):
            p.copy_(1 + torch.rand(p.shape))
    texts = [row.implementation for row in describe(network).layers]
    assert not [text for text in texts if "sparse" in text]
    taps = [row.implementation for row in describe(network).layers if "dwconv" in row.name]
    assert all("taps of the depthwise 3x3" in text and "dense" not in text for text in taps)


def test_a_matrix_is_dense_if_what_is_packed_of_it_is(thin):
    """Channels that are dead are not packed: few weights may fill a small matrix."""
    ffn = thin.encoder_level1[0].ffn
    for weight in (ffn.project_in.weight, ffn.dwconv.weight, ffn.project_out.weight):
        weight.copy_(1 + torch.rand(weight.shape))
    pairs = ffn.project_out.weight.shape[1]
    ffn.project_out.weight[:, pairs // 4 :] = 0
    row = rows(thin)["encoder_level1.0.ffn.project_out"]
    assert row.density < 0.3
    assert row.implementation == "fused GDFN: dense 1x1 project_out"
    assert "dense 1x1" in rows(thin)["encoder_level1.0.ffn.project_in"].implementation


def test_a_pruned_gain_makes_a_full_matrix_sparse(thin):
    """The gain of a layer norm is packed into the matrix behind it."""
    block = thin.encoder_level1[0]
    weight = block.attn.qkv.weight
    weight.copy_(1 + torch.rand(weight.shape))
    assert "dense 1x1" in rows(thin)["encoder_level1.0.attn.qkv"].implementation
    block.norm1.body.weight[1:] = 0
    row = rows(thin)["encoder_level1.0.attn.qkv"]
    assert row.density == 1
    assert "sparse 1x1" in row.implementation


def test_a_convolution_may_be_dense_in_part(thin):
    weight = thin.output.weight
    weight.zero_()
    weight[0] = 1
    weight[:, :11] = 1  # 99 columns; the kernels take 96 at a time
    assert rows(thin)["output"].implementation == "partly dense 3x3, its store adds the image"


def test_counts_are_those_of_the_weights(thin):
    thin.latent[0].attn.qkv.weight[:5] = 0
    report = describe(thin, removed=7)
    row = rows(thin)["latent.0.attn.qkv"]
    weight = thin.latent[0].attn.qkv.weight
    assert row.shape == tuple(weight.shape)
    assert (row.nonzero, row.total) == (int(weight.count_nonzero()), weight.numel())
    assert (row.macs, row.macs_dense) == (row.nonzero * 32 * 32, row.total * 32 * 32)
    assert row.dead_rows >= 5
    linear = rows(thin)["prompt1.linear_layer"]
    assert linear.macs == linear.nonzero
    statistics = report.statistics
    assert statistics["weights"] == sum(x.nonzero for x in report.layers)
    assert statistics["density"] == statistics["weights"] / statistics["weights_dense"]
    assert statistics["dead_weights_removed"] == 7


def test_unused_layers_are_not_described(thin):
    assert thin.config.unused_layers
    modules = {name for name, m in thin.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    unused = modules - rows(thin).keys()
    assert len(unused) == 6
    assert all(name.startswith(("chnl_reduce", "reduce_noise_channel_")) for name in unused)
    expected = sum(
        p.numel() for name, p in thin.named_parameters() if name.removesuffix(".weight") not in unused
    )
    assert describe(thin).parameters_dense == expected


def test_describing_changes_nothing(thin):
    before = {name: value.clone() for name, value in thin.state_dict().items()}
    describe(thin)
    assert all(torch.equal(value, before[name]) for name, value in thin.state_dict().items())
