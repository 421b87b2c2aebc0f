"""Blocks that attend within windows are fused, and say why where they are not."""

import pickle
from importlib import import_module
from typing import Any

import pytest
import torch
from sparsifying import implementations, pruned, rand, reason_not_fused, same, sparsify
from torch import Tensor, nn

from mirl_sparse.architectures.image_network import import_torchvision, is_available

if not is_available():
    pytest.skip("needs spandrel", allow_module_level=True)
import_torchvision()
swinir = import_module("spandrel.architectures.SwinIR.__arch.SwinIR")
scunet = import_module("spandrel.architectures.SCUNet.__arch.SCUNet")
uformer = import_module("spandrel.architectures.Uformer.__arch.Uformer")
SETTINGS = {
    "img_size": 16,
    "window_size": 4,
    "depths": [2, 2],
    "embed_dim": 12,
    "num_heads": [2, 3],
    "mlp_ratio": 2,
    "upscale": 1,
    "img_range": 1.0,
    "upsampler": "",
    "resi_connection": "1conv",
}


def network() -> nn.Module:
    return pruned(swinir.SwinIR(**SETTINGS), 0.5)


def block() -> nn.Module:
    return pruned(swinir.SwinTransformerBlock(12, (16, 16), 2, window_size=4, shift_size=2, mlp_ratio=2), 0.5)


def lewin(**options: Any) -> nn.Module:
    settings: dict[str, Any] = {"win_size": 4, "shift_size": 2, "mlp_ratio": 2, "modulator": True}
    block: nn.Module = uformer.LeWinTransformerBlock(12, (16, 16), 2, **settings | options)
    return pruned(block, 0.5)


class Tokens(nn.Module):
    """Call a block of tokens on an image."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.block(x.flatten(2).transpose(1, 2), tuple(x.shape[2:]))
        return tokens.transpose(1, 2).view(x.shape)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (2, 3, 12, 20), (1, 3, 9, 7)])
def test_blocks_of_swinir_are_fused(shape):
    """On the resolution that they were made for, and on others, which the network pads."""
    dense, image = network(), rand(1, 3, 16, 16)
    sparsified = sparsify(dense, image)
    assert list(implementations(sparsified).values()).count("fused Swin block") == 4
    same(sparsified, dense, rand(*shape))


@pytest.mark.parametrize("kind", ["W", "SW"])
def test_blocks_of_scunet_are_fused(kind):
    dense = pruned(scunet.Block(12, 12, 4, 4, 0.0, kind, 64), 0.5)
    x = rand(2, 8, 12, 12)
    sparsified = sparsify(dense, x)
    assert implementations(sparsified) == {"": "fused Swin block"}
    same(sparsified, dense, x)


def test_a_block_is_fused_without_an_example_too():
    dense = Tokens(block())
    sparsified = sparsify(dense)
    assert implementations(sparsified) == {"block": "fused Swin block"}
    same(sparsified, dense, rand(1, 12, 8, 16))


class SquareTokens(nn.Module):
    """Call a block of Uformer on a square image, with a mask or without one."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.block(x.flatten(2).transpose(1, 2), mask).transpose(1, 2).view(x.shape)


PARTS = {"block.attn": "fused window attention", "block.mlp": "fused LeFF"}


@pytest.mark.parametrize("options", [{}, {"shift_size": 0}, {"modulator": False, "qkv_bias": False}])
def test_blocks_of_uformer_are_fused(options):
    dense, x = SquareTokens(lewin(**options)), rand(2, 12, 16, 16)
    sparsified = sparsify(dense, x)
    assert implementations(sparsified) == PARTS
    for image in (x, rand(1, 12, 4, 4), rand(1, 12, 24, 24)):
        same(sparsified, dense, image)


def test_uformer_is_fused_compiled_and_pickled():
    dense = pruned(
        uformer.Uformer(
            img_size=32, embed_dim=8, depths=[1] * 9, num_heads=[1] * 9, win_size=2, modulator=True
        ),
        0.5,
    )
    image = rand(1, 3, 32, 32)
    sparsified = sparsify(dense, image)
    assert list(implementations(sparsified).values()).count("fused LeFF") == 9
    same(sparsified, dense, image)
    same(torch.compile(sparsified, dynamic=False), dense, image)
    same(pickle.loads(pickle.dumps(sparsified)), dense, image)


def test_a_mask_of_uformer_runs_dense_or_layer_by_layer():
    dense, x, mask = SquareTokens(lewin()), rand(1, 12, 16, 16), (rand(1, 1, 32, 32) > 0.5).float()
    sparsified = sparsify(dense, x)
    assert implementations(sparsified) == PARTS
    with torch.no_grad():
        assert torch.equal(sparsified(x, mask), dense(x, mask))
        assert not torch.equal(dense(x, mask), dense(x))
    masked = sparsify(dense, (x, mask))
    assert "called with more than its input" in reason_not_fused(masked, "block")
    assert "fused LeFF" not in implementations(masked).values()
    with torch.no_grad():
        torch.testing.assert_close(masked(x, mask), dense(x, mask))


def test_a_block_of_uformer_may_be_called_without_its_mask():
    class WithoutMask(SquareTokens):
        def forward(self, x: Tensor) -> Tensor:
            return self.block(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape)

    dense, x = WithoutMask(lewin()), rand(1, 12, 16, 16)
    sparsified = sparsify(dense, x)
    assert implementations(sparsified) == PARTS
    same(sparsified, dense, x)
    compiled = torch.compile(sparsified, fullgraph=True)
    for side in (16, 8, 24):
        same(compiled, dense, rand(1, 12, side, side))


@pytest.mark.parametrize(
    ("options", "change", "reason"),
    [
        ({"cross_modulator": True}, lambda b: None, "it has a cross_modulator"),
        ({"token_projection": "conv"}, lambda b: None, "it has no attn.qkv.to_q.weight"),
        ({"token_mlp": "mlp"}, lambda b: None, "it has no mlp.linear1.0.weight"),
        ({}, lambda b: setattr(b.mlp.dwconv[0], "dilation", (2, 2)), "dilation (2, 2)"),
        ({}, lambda b: setattr(b.mlp.linear1, "1", nn.ReLU()), "mlp.linear1.1 is ReLU(); expected GELU()"),
        ({}, lambda b: setattr(b.mlp, "eca", nn.Hardtanh(0.0, 0.1)), "does not give the same"),
        ({}, lambda b: setattr(b, "win_size", 2), "its shift is 2; expected 0 to 1"),
        ({}, lambda b: setattr(b, "win_size", 8), "no attn.relative_position_index"),
        ({}, lambda b: b.attn.relative_position_index.fill_(49), "other numbers than 0 to 48"),
        ({}, lambda b: setattr(b, "modulator", nn.Embedding(9, 12)), "modulator.weight has shape"),
    ],
)
def test_a_block_of_uformer_that_computes_something_else_is_not_fused(options, change, reason):
    dense = SquareTokens(lewin(**options))
    change(dense.block)
    sparsified = sparsify(dense)
    assert reason in reason_not_fused(sparsified, "block")
    assert "fused LeFF" not in implementations(sparsified).values()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda b: setattr(b, "norm1", nn.Identity()), "norm1 is Identity; expected LayerNorm"),
        (lambda b: setattr(b.mlp, "act", nn.ReLU()), "mlp.act is ReLU(); expected GELU()"),
        (lambda b: setattr(b.mlp, "act", nn.GELU(approximate="tanh")), "expected GELU()"),
        (lambda b: setattr(b.mlp, "fc2", nn.Linear(24, 11)), "mlp.fc2.weight has shape"),
        (lambda b: setattr(b, "window_size", 8), "no attn.relative_position_index"),
        (lambda b: setattr(b.attn, "scale", 2.0), "attn.scale is 2.0; expected 0.4082"),
        (lambda b: b.attn_mask.zero_(), "attn_mask is not what its shift asks for"),
        (lambda b: setattr(b, "input_resolution", (16, 15)), "its input_resolution is (16, 15)"),
        (
            lambda b: setattr(b.attn, "relative_position_bias_table", nn.Parameter(torch.zeros(49, 0))),
            "it has no weights",
        ),
    ],
)
def test_a_block_that_computes_something_else_is_not_fused(change, reason):
    dense = Tokens(block())
    change(dense.block)
    sparsified = sparsify(dense)
    assert reason in reason_not_fused(sparsified, "block")
    assert "fused Swin block" not in implementations(sparsified).values()


def test_a_block_that_is_called_by_name_is_not_fused():
    class ByName(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            return self.block(x.flatten(2).transpose(1, 2), x_size=tuple(x.shape[2:]))

    dense = ByName(block())
    sparsified = sparsify(dense, rand(1, 12, 8, 8))
    assert "called with more than its input, or by name" in reason_not_fused(sparsified, "block")
    same(sparsified, dense, rand(1, 12, 8, 8))


def test_a_part_of_a_block_can_stay_dense():
    dense, image = network(), rand(1, 3, 16, 16)
    name = "layers.0.residual_group.blocks.0"
    sparsified = sparsify(dense, image, keep_dense=[f"{name}.attn.qkv"])
    assert reason_not_fused(sparsified, name) == "not fused as a Swin block: keep_dense names a part of it"
    assert implementations(sparsified)[f"{name}.attn.qkv"] == "dense"
    same(sparsified, dense, image)


def test_a_sparsified_network_is_pickled():
    sparsified, image = sparsify(network(), rand(1, 3, 16, 16)), rand(1, 3, 12, 20)
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(sparsified))(image), sparsified(image))
