"""Test Muon: orthogonal updates, which parameters it steps, and the bits after a stop."""

import copy

import pytest
import torch

from mirl_training.engine import Muon, optimizers, orthogonalised


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 30), (2, 40, 6), (1, 1, 9)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    g = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    g = u @ torch.diag_embed(s.clamp(min=0.05 * s.max())) @ vh  # five iterations lift what is not tiny
    done = orthogonalised(g)
    values = torch.linalg.svdvals(done)
    assert values.min() > 0.6
    assert values.max() < 1.3
    exact = u @ vh
    cosine = (done * exact).sum((-2, -1)) / done.norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1))
    assert cosine.min() > 0.97


def test_a_zero_gradient_moves_nothing_but_by_decay():
    p = torch.nn.Parameter(torch.ones(2, 3, 1, 1))
    p.grad = torch.zeros_like(p)
    Muon([p], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(p.detach(), torch.full_like(p, 0.95))


@pytest.mark.parametrize("dead", [(), ((0, 3), ()), ((), (0, 7, 35)), ((4,), tuple(range(1, 36)))])
def test_a_step_is_its_definition(dead):
    """Nesterov's momentum, orthogonalised, at the scale 0.2 sqrt(max(M, N)), after decay.

    Rows and columns may be pruned.
    """
    live = torch.ones(5, 36)
    for axis, indices in enumerate(dead):
        live.index_fill_(axis, torch.tensor(indices, dtype=torch.int64), 0)
    p = torch.nn.Parameter(torch.randn(5, 4, 3, 3))
    expected, past = p.detach().clone().double(), torch.zeros(5, 36, dtype=torch.float64)
    optimizer = Muon([p], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        p.grad = torch.randn_like(p) * live.view_as(p)
        grad = p.grad.flatten(1).double()
        past = 0.95 * past + grad
        update = orthogonalised((grad + 0.95 * past)[None])[0]
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 6 * update.view_as(p)
        optimizer.step()
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-4, atol=1e-6)


def test_every_parameter_has_one_optimizer_and_matrices_have_muon(network):
    adamw, muon = optimizers(network, "muon", 1e-3, 0.0)
    of = {id(p): o for o in (adamw, muon) for g in o.param_groups for p in g["params"]}
    assert len(of) == sum(len(g["params"]) for o in (adamw, muon) for g in o.param_groups)
    kinds = {n: of[id(p)] is muon for n, p in network.named_parameters()}
    assert kinds["latent.0.attn.qkv.weight"]
    assert kinds["down1_2.body.0.weight"]
    assert not any(
        kinds[n] for n in kinds if "norm" in n or "dwconv" in n or n.startswith(("patch_embed", "output"))
    )
    assert len(optimizers(network, "adamw", 1e-3, 0.0)) == 1


def test_a_loaded_state_continues_with_the_same_bits():
    a = torch.nn.Parameter(torch.randn(3, 3, 1, 1))
    one = Muon([a], lr=0.1, weight_decay=0.0)
    a.grad = torch.randn_like(a)
    one.step()
    b = torch.nn.Parameter(a.detach().clone())
    two = Muon([b], lr=0.1, weight_decay=0.0)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    a.grad = torch.randn_like(a)
    b.grad = a.grad.clone()
    one.step()
    two.step()
    assert torch.equal(a, b)
