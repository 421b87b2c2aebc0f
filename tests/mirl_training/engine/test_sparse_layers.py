"""Blocks of NAFNet train by their surviving weights, where they are what the kernels compute."""

import copy

import pytest
import torch
from sparsifying import NAFBlock
from torch import nn

from mirl_kernels.core import cpu
from mirl_training.engine.sparse_layers import use_dense_layers, use_sparse_layers
from mirl_training.pruning import Mask, prune_to_density

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")


class Dropping(NAFBlock):
    """NAFNet's block with dropout between its halves."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(super().forward(x))


class Clipped(NAFBlock):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).clamp(0, 1)


class Conditional(NAFBlock):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, time = pair
        return super().forward(x) * time


def pruned(network: nn.Module, density: float = 0.3) -> tuple[nn.Module, Mask]:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    mask = prune_to_density(network, Mask.full(network), density, "layerwise")
    mask.apply(network)
    return network, mask


def is_sparse(block: nn.Module, density: float = 0.3) -> bool:
    network, mask = pruned(nn.Sequential(block), density)
    use_sparse_layers(network, mask)
    return "forward" in vars(block)


def gradients(network: nn.Module, mask: Mask, x: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    network(x).square().sum().backward()
    mask.apply_to_gradients(network)
    return {"x": x.grad, **{name: p.grad.clone() for name, p in network.named_parameters()}}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(2, 8, 13, 21), (3, 8, 8, 8), (1, 8, 32, 32)])
def test_nafnet_trains_with_the_gradients_of_pytorch(bias, shape):
    network, mask = pruned(nn.Sequential(NAFBlock(bias=bias), NAFBlock(bias=bias)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = gradients(network, mask, x)
    use_sparse_layers(network, mask)
    assert all("forward" in vars(block) for block in network)
    for name, gradient in gradients(network, mask, x).items():
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], atol=1e-4 * largest, rtol=0)
    use_dense_layers(network)
    assert not any("forward" in vars(block) for block in network)


@pytest.mark.parametrize("shape", [(1, 8, 19, 24), (3, 8, 8, 8), (4, 8, 12, 40)])
def test_any_number_of_threads_gives_the_same_bits(shape):
    network, mask = pruned(NAFBlock())
    use_sparse_layers(network, mask)
    x, threads = torch.randn(shape), torch.get_num_threads()
    by_threads = []
    try:
        for n in (1, 2, 3, 1):
            torch.set_num_threads(n)
            by_threads.append(gradients(network, mask, x))
    finally:
        torch.set_num_threads(threads)
    for name, gradient in by_threads[0].items():
        assert all(torch.equal(gradient, other[name]) for other in by_threads[1:]), name


def test_a_copy_and_a_second_call_before_the_gradients_have_their_own_weights():
    network, mask = pruned(NAFBlock())
    x = torch.randn(1, 8, 9, 9)
    expected = gradients(network, mask, x)
    use_sparse_layers(network, mask)
    result = network(x).square().sum()
    network.zero_grad(set_to_none=True)
    other = copy.deepcopy(network)
    assert other.forward.module is other
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(2)
    other(x)
    parameters = [p for p in network.parameters() if p.requires_grad]
    torch.func.functional_call(network, {n: 2 * p for n, p in network.named_parameters()}, x)
    for p, gradient in zip(parameters, torch.autograd.grad(result, parameters), strict=True):
        p.grad = gradient
    mask.apply_to_gradients(network)
    for name, p in network.named_parameters():
        torch.testing.assert_close(
            p.grad, expected[name], atol=1e-4 * expected[name].abs().max().item(), rtol=0
        )


def test_blocks_that_compute_something_else_stay_with_pytorch():
    assert is_sparse(NAFBlock())
    assert is_sparse(Dropping(0))
    assert not is_sparse(Dropping(0.1))
    assert not is_sparse(Clipped())
    assert not is_sparse(Conditional())
    assert not is_sparse(NAFBlock(), density=0.6)
    watched = NAFBlock()
    watched.conv4.register_forward_hook(lambda *_: None)
    assert not is_sparse(watched)
    shared = NAFBlock()
    shared.norm2 = shared.norm1
    assert not is_sparse(shared)


def test_images_of_another_precision_are_left_to_pytorch():
    network, mask = pruned(NAFBlock())
    use_sparse_layers(network, mask)
    with torch.no_grad():
        assert network.double()(torch.zeros(1, 8, 4, 4, dtype=torch.float64)).dtype == torch.float64
