"""Training on the fused kernels against the plain network."""

import copy

import pytest
import torch
from torch.nn import functional as F

from mirl_kernels import _cpu
from mirl_sparse.network import PromptIR, PromptIRConfig
from mirl_training.fused import fuse, unfuse
from mirl_training.masks import Mask, prune

pytestmark = pytest.mark.skipif(not _cpu.available(), reason="the C++ kernels were not built")


@pytest.fixture(scope="module")
def network() -> PromptIR:
    torch.manual_seed(0)
    return PromptIR(PromptIRConfig(
        dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 2, 4, 8), prompt_dims=(8, 12, 16),
        prompt_sizes=(8, 4, 2), unused_layers=False,
    ))  # fmt: skip


def pruned(network: PromptIR, density: float) -> tuple[PromptIR, Mask]:
    network = copy.deepcopy(network)
    mask = Mask.full(network)
    if density < 1:
        mask = prune(network, mask, density, "layerwise")
    mask.apply(network)
    return network, mask


def gradients(network: PromptIR, degraded: torch.Tensor, clean: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad(set_to_none=True)
    F.mse_loss(network(degraded), clean).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_the_whole_networks_gradients_are_those_of_float64(network, density):
    plain, mask = pruned(network, density)
    fused = copy.deepcopy(plain)
    fuse(fused, mask)
    degraded, clean = torch.rand(2, 3, 24, 40), torch.rand(2, 3, 24, 40)
    wanted = gradients(plain.double(), degraded.double(), clean.double())
    for name, got in gradients(fused, degraded, clean).items():
        want = wanted[name]
        if name in mask.alive:
            assert not got[~mask.alive[name]].any(), name
            want = want * mask.alive[name]
        scale = max(1e-9, want.abs().max().item())
        torch.testing.assert_close(got.double(), want, atol=1e-4 * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_it_answers_the_same_and_can_be_undone(network):
    plain, mask = pruned(network, 0.2)
    image, keys = torch.rand(1, 3, 16, 24), list(plain.state_dict())
    before = gradients(plain, image, image)
    fuse(plain, mask)
    assert list(plain.state_dict()) == keys
    copied = copy.deepcopy(plain)
    torch.testing.assert_close(copied(image), plain(image), atol=0, rtol=0)
    unfuse(plain)
    for name, gradient in gradients(plain, image, image).items():
        assert torch.equal(gradient, before[name]), name


def test_any_number_of_threads_gives_the_same_bits(network):
    plain, mask = pruned(network, 0.3)
    fuse(plain, mask)
    threads, image = torch.get_num_threads(), torch.rand(2, 3, 32, 32)
    try:
        found = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(gradients(plain, image, 1 - image))
    finally:
        torch.set_num_threads(threads)
    for name, gradient in found[0].items():
        if "prompt" in name or "linear" in name:  # PyTorch's own sums, whose order may change
            continue
        assert torch.equal(gradient, found[1][name]) and torch.equal(gradient, found[2][name]), name
