"""Blocks are fused where they compute the same as their fused form, and say why where they are not."""

import copy

import pytest
import torch
from sparsifying import (
    IMAGE,
    Block,
    NAFBlock,
    implementations,
    pruned,
    rand,
    reason_not_fused,
    same,
    sparsify,
)
from torch import Tensor, nn

from mirl_sparse.architectures.promptir.network import PromptIR


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_blocks_of_restormers_family_are_fused_wherever_they_occur(bias, centred):
    dense = pruned(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ModuleDict({"deep": Block(8, 2, bias, centred)})["deep"]
        ),
        0.5,
    )
    sparsified = sparsify(dense, IMAGE)
    assert implementations(sparsified) == {
        "0": "sparse convolution",
        "1.attn": "fused MDTA",
        "1.ffn": "fused GDFN",
    }
    same(sparsified, dense, IMAGE)


@pytest.mark.parametrize("bias", [False, True])
def test_blocks_of_nafnet_are_fused_wherever_they_occur(bias):
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), pruned(NAFBlock(bias=bias), 0.5))
    sparsified = sparsify(dense.eval(), IMAGE)
    assert implementations(sparsified) == {"0": "sparse convolution", "1": "fused NAFNet block"}
    same(sparsified, dense, IMAGE)


def test_blocks_of_nafnet_that_average_over_windows_are_not_fused():
    class Window(nn.Module):
        """Average over windows; in so small an image, over all of it."""

        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3), keepdim=True)

    sparsified = sparsify(pruned(NAFBlock(pooled=Window()), 0.5), rand(1, 8, 9, 9))
    assert set(implementations(sparsified).values()) == {
        "sparse 1x1",
        "sparse depthwise",
        "dense",
        "layer by layer",
    }
    assert reason_not_fused(sparsified, "") == (
        "not fused as a NAFNet block:"
        " sca averages by Window to size None; expected AdaptiveAvgPool2d to size 1"
    )


def test_prompt_blocks_are_fused_wherever_they_occur(network):
    dense = nn.Sequential(nn.Conv2d(3, 16, 1), copy.deepcopy(network.prompt1))
    sparsified = sparsify(dense.eval(), IMAGE)
    assert implementations(sparsified) == {"0": "sparse 1x1", "1": "fused prompt"}
    same(sparsified, dense, IMAGE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("more results than prompts", "conv3x3.weight has shape"),
        ("prompts that are not square", "prompt_param has shape"),
        ("a bias", "conv3x3 has a bias"),
        ("another padding", "conv3x3 has stride (1, 1), dilation (1, 1) and reflect padding"),
    ],
)
def test_a_prompt_block_of_another_kind_is_not_fused(network, change, reason):
    block = copy.deepcopy(network.prompt1)
    prompts = block.prompt_param.shape[2]
    if change.startswith("more"):
        block.conv3x3 = nn.Conv2d(prompts, 4 * prompts, 3, padding=1, bias=False)
    elif change.startswith("prompts"):
        block.prompt_param = nn.Parameter(torch.rand(*block.prompt_param.shape[:3], 12, 8))
    elif change == "a bias":
        block.conv3x3.bias = nn.Parameter(torch.ones(prompts))
    else:
        block.conv3x3.padding_mode = "reflect"
    dense = nn.Sequential(nn.Conv2d(3, 16, 1), block).eval()
    sparsified = sparsify(dense, IMAGE)
    assert "fused prompt" not in implementations(sparsified).values()
    assert reason_not_fused(sparsified, "1").startswith(f"not fused as a prompt block: {reason}")
    same(sparsified, dense, IMAGE)


def test_a_block_with_another_epsilon_is_sparsified_layer_by_layer():
    """With inputs as large as noise, results alone would not show another epsilon."""
    for epsilon in (1e-6, 1e-3):
        dense = pruned(Block(epsilon=epsilon), 0.5)
        sparsified = sparsify(dense, rand(1, 8, 9, 9))
        assert "fused MDTA" not in implementations(sparsified).values()
        assert reason_not_fused(sparsified, "").endswith("its sparse form does not give the same")
        for scale in (1, 1e-2, 1e-3):
            same(sparsified, dense, scale * rand(1, 8, 9, 9))


def test_a_block_whose_norm_has_another_epsilon_attribute_says_so():
    dense = pruned(Block(), 0.5)
    dense.norm2.body.eps = 1e-6
    reason = reason_not_fused(sparsify(dense, rand(1, 8, 9, 9)), "")
    assert reason == "not fused as a Restormer block: norm2.body adds 1e-06 to the variance; expected 1e-05"


def test_a_block_with_a_hook_inside_is_sparsified_layer_by_layer():
    dense, seen = pruned(nn.Sequential(Block(), nn.Conv2d(8, 8, 1), nn.ReLU()), 0.5), []
    for module in (dense[0].ffn, dense[2]):
        module.register_forward_hook(lambda module, args, result: seen.append(type(module)))
    sparsified = sparsify(dense, rand(1, 8, 9, 9))
    assert reason_not_fused(sparsified, "0") == "not fused as a Restormer block: its ffn has hooks"
    seen.clear()
    same(sparsified, dense, rand(1, 8, 9, 9))
    assert len(seen) == 4  # two of either network


def test_a_promptir_that_does_more_is_sparsified_block_by_block(network):
    class Halved(PromptIR):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * 0.5).clamp(0, 1)

    dense, image = Halved(network.config), torch.rand(1, 3, 24, 32)
    dense.load_state_dict(network.state_dict())
    sparsified = sparsify(dense.eval(), image)
    assert "fused MDTA" in implementations(sparsified).values()
    same(sparsified, dense, image)


def test_another_default_dtype_changes_nothing():
    dense = pruned(nn.Sequential(nn.Conv2d(3, 8, 3), Block(8)), 0.5)
    torch.set_default_dtype(torch.float64)
    try:
        sparsified = sparsify(dense, IMAGE)
        same(sparsified, dense, IMAGE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert implementations(sparsified) == {
        "0": "sparse convolution",
        "1.attn": "fused MDTA",
        "1.ffn": "fused GDFN",
    }


def test_a_block_that_only_looks_like_one_is_sparsified_layer_by_layer():
    dense = pruned(Block(scale=0.5), 0.5)
    sparsified = sparsify(dense, rand(1, 8, 9, 9))
    assert "sparse 1x1" in implementations(sparsified).values()
    assert "fused MDTA" not in implementations(sparsified).values()
    assert reason_not_fused(sparsified, "").endswith("its sparse form does not give the same")
    assert "layer by layer" in str(sparsified.report)
    assert "6 of 9 swapped" in str(sparsified.report)  # the block itself, the tenth row, holds no weights
    same(sparsified, dense, rand(1, 8, 9, 9))


class Widening(Block):
    """One whose feed-forward layer has twice the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.ffn.project_out = nn.Conv2d(self.ffn.project_out.in_channels, 16, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(self.norm2(x + self.attn(self.norm1(x))))


def test_a_block_whose_parts_are_of_other_sizes_is_sparsified_layer_by_layer():
    dense = pruned(Widening(), 0.5)
    sparsified = sparsify(dense, rand(1, 8, 9, 9))
    assert not {"fused MDTA", "fused GDFN"} & set(implementations(sparsified).values())
    reason = reason_not_fused(sparsified, "")
    assert reason.endswith("ffn.project_out.weight has shape (16, 16, 1, 1); expected (8, 16, 1, 1)")
    same(sparsified, dense, rand(1, 8, 9, 9))


def _without_qkv(block: nn.Module) -> None:
    block.attn = nn.MultiheadAttention(8, 2)


def _of_three_heads(block: nn.Module) -> None:
    block.attn.temperature = nn.Parameter(torch.ones(3, 1, 1))


def _reflecting(block: nn.Module) -> None:
    block.attn.qkv_dwconv.padding_mode = "reflect"


def _in_double_precision(block: nn.Module) -> None:
    block.double()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without_qkv, "it has no attn.qkv.weight"),
        (_of_three_heads, "attn.temperature is of 3 heads, which do not divide 8 channels"),
        (_reflecting, "attn.qkv_dwconv has stride (1, 1), dilation (1, 1) and reflect padding; expected"),
        (_in_double_precision, "norm1.body.weight is torch.float64 on cpu; the kernels take float32"),
    ],
)
def test_a_module_that_resembles_a_block_says_what_is_different(change, reason):
    block = Block()
    change(block)
    sparsified = sparsify(nn.Sequential(pruned(block, 0.5)))
    assert reason_not_fused(sparsified, "0").startswith(f"not fused as a Restormer block: {reason}")


def test_a_block_that_is_never_called_says_so():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.block = nn.Conv2d(3, 3, 1), Block()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    sparsified = sparsify(pruned(Unused(), 0.5), IMAGE)
    assert (
        reason_not_fused(sparsified, "block")
        == "not fused as a Restormer block: the example input never calls it"
    )


def test_a_block_that_refuses_the_sizes_of_the_comparison_is_sparsified_layer_by_layer():
    class EvenSides(Block):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] % 2:
                raise ValueError(f"height is {x.shape[2]}; expected an even number")
            return super().forward(x)

    dense = pruned(EvenSides(), 0.5)
    sparsified = sparsify(dense, rand(1, 8, 8, 9))
    reason = reason_not_fused(sparsified, "")
    assert reason.endswith(
        "cannot be compared on inputs (2, 8, 17, 31): height is 17; expected an even number"
    )
    same(sparsified, dense, rand(1, 8, 8, 9))


@pytest.mark.parametrize("part", ["PackedMDTA", "PackedGDFN", "PackedBlock"])
def test_an_error_while_a_block_is_packed_is_raised(part, monkeypatch):
    def fail(*weights):
        raise ValueError(f"{part} is broken")

    monkeypatch.setattr(f"mirl_sparse.sparsification.blocks.{part}", fail)
    with pytest.raises(ValueError, match=f"{part} is broken"):
        sparsify(pruned(Block(), 0.5), rand(1, 8, 9, 9))
