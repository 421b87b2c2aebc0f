"""Test masks: what is prunable, distances, and gradients of dead channels."""

from dataclasses import replace

import pytest
import torch

from mirl_sparse.architectures.promptir import PromptIR
from mirl_training.pruning import Mask, prune_to_density


def test_norms_prompts_temperatures_and_biases_are_not_prunable(network):
    names = set(Mask.full(network).alive)
    others = [n for n, _ in network.named_parameters() if n not in names]
    assert all(n.endswith(("temperature", "prompt_param", "bias")) or "norm" in n for n in others)
    assert not any("norm" in n or "prompt_param" in n for n in names)


def test_layers_that_are_never_called_are_not_prunable(network):
    """Nothing of it is trained, and tickets leave it out."""
    published = PromptIR(replace(network.config, unused_layers=True))
    assert Mask.full(published).alive.keys() == Mask.full(network).alive.keys()
    as_mirl = Mask.full(published, gains=True).alive.keys() - Mask.full(network, gains=True).alive.keys()
    assert as_mirl == {n for n, _ in published.named_parameters()} - {
        n for n, _ in network.named_parameters()
    }


def test_dead_queries_do_not_stop_learning(network):
    """A q channel of exact zeros has a gradient of 1e12 through its L2 norm.

    The mask removes it before it is clipped, so that the norm of the rest decides.
    """
    attention = network.encoder_level1[0].attn
    channels = attention.qkv.weight.shape[1]
    mask = Mask.full(network)
    mask.alive["encoder_level1.0.attn.qkv.weight"][:channels] = False
    mask.apply(network)
    assert not attention.qkv.weight[:channels].any()
    assert Mask.of(network).nnz == mask.nnz
    network(torch.rand(1, 3, 16, 16)).mean().backward()
    assert attention.qkv.weight.grad.abs().max() > 1e6  # else this test shows nothing
    mask.apply_to_gradients(network)
    assert torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0) < 1e3


def test_the_distance_of_masks_is_the_share_that_one_keeps(network):
    full = Mask.full(network)
    half, less = (
        prune_to_density(network, full, 0.5, "global"),
        prune_to_density(network, full, 0.25, "global"),
    )
    assert full.distance(full) == 0
    assert full.distance(half) == pytest.approx(0.5, abs=1e-3)
    assert half.distance(less) == less.distance(half) == pytest.approx(0.25, abs=1e-3)
