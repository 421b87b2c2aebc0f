import pytest
import torch

from mirl_sparse import PromptIR, PromptIRConfig


@pytest.fixture
def network() -> PromptIR:
    """A small pruned network, its norms away from one and zero."""
    return pruned()


@pytest.fixture
def half_resolution_network() -> PromptIR:
    """The same, but its pixels are unshuffled first."""
    return pruned(unshuffle=2)


@pytest.fixture(params=["network", "half_resolution_network"])
def network_of_any_resolution(request) -> PromptIR:
    """Each of the two."""
    return request.getfixturevalue(request.param)


def pruned(unshuffle: int = 1) -> PromptIR:
    torch.manual_seed(1)
    config = PromptIRConfig(
        dim=8,
        num_blocks=(1, 1, 1, 1),
        num_refinement_blocks=1,
        prompt_dims=(4, 4, 8),
        prompt_sizes=(8, 4, 4),
        unshuffle=unshuffle,
    )
    net = PromptIR(config).eval().requires_grad_(False)
    for name, p in net.named_parameters():
        if name.endswith("weight") and p.ndim > 1:
            p *= torch.rand(p.shape) < 0.15
        elif "body" in name:
            p += 0.1 * torch.randn(p.shape)
    return net
