"""Test criteria: exact density, nesting, ties, exemptions."""

import numpy as np
import pytest
import torch

from mirl_training.pruning import Mask, MaskError, prune_as_mirl, prune_to_density


def test_lamp_ranks_by_the_share_of_what_is_not_smaller(network):
    """The scores of Lee et al., eq. 3, one by one."""
    mask = prune_to_density(
        network, prune_to_density(network, Mask.full(network), 0.8, "global"), 0.3, "lamp"
    )
    assert mask.nnz == round(mask.total * 0.3)
    before = prune_to_density(network, Mask.full(network), 0.8, "global")
    kept, dropped = [], []
    for name, keep in mask.alive.items():
        alive = before.alive[name]
        squares = network.get_parameter(name).detach()[alive].double().square()
        if len(squares) > 2000:
            continue  # one by one takes long
        scores = squares / (squares * (squares >= squares[:, None])).sum(1)
        kept += scores[keep[alive]].tolist()
        dropped += scores[~keep[alive]].tolist()
    assert len(kept) > 100 and len(dropped) > 100
    assert min(kept) >= max(dropped) * (1 - 1e-12)


@pytest.mark.parametrize("density", [0.9, 0.5, 0.1, 0.01])
def test_global_density_is_exact_and_keeps_the_largest(network, density):
    mask = prune_to_density(network, Mask.full(network), density, "global")
    assert mask.nnz == round(mask.total * density)
    weights = {n: network.get_parameter(n).abs() for n in mask.alive}
    kept = min(weights[n][keep].min().item() for n, keep in mask.alive.items() if keep.any())
    dropped = max(weights[n][~keep].max().item() for n, keep in mask.alive.items() if not keep.all())
    assert kept >= dropped


@pytest.mark.parametrize("density", [0.5, 0.1])
def test_layerwise_density_is_exact_to_one_weight_per_layer(network, density):
    mask = prune_to_density(network, Mask.full(network), density, "layerwise")
    for name, keep in mask.alive.items():
        assert abs(int(keep.sum()) - density * keep.numel()) <= 1, name


def test_layerwise_from_an_uneven_mask_still_reaches_its_density(network):
    """Layers that are emptier than their share leave it to the others."""
    uneven = prune_to_density(network, Mask.full(network), 0.4, "global")
    mask = prune_to_density(network, uneven, 0.3, "layerwise")
    assert mask.density == pytest.approx(0.3, abs=len(mask.alive) / mask.total)
    assert all(bool((uneven.alive[n] | ~keep).all()) for n, keep in mask.alive.items())


@pytest.mark.parametrize("criterion", ["global", "layerwise", "lamp"])
def test_rounds_are_nested(network, criterion):
    mask = Mask.full(network)
    for i in range(1, 6):
        with torch.no_grad():  # training moves the weights between rounds
            for p in network.parameters():
                p += 0.3 * torch.randn_like(p) * p.std() if p.numel() > 1 else 0
        smaller = prune_to_density(network, mask, 0.8**i, criterion)
        assert all(bool((mask.alive[n] | ~keep).all()) for n, keep in smaller.alive.items())
        assert smaller.density == pytest.approx(0.8**i, abs=1e-3)
        mask = smaller


@pytest.mark.parametrize("criterion", ["global", "layerwise", "lamp"])
def test_ties_are_broken_the_same_way_and_exactly(network, criterion):
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(0.5)
    first = prune_to_density(network, Mask.full(network), 0.25, criterion)
    again = prune_to_density(network, Mask.full(network), 0.25, criterion)
    assert first.nnz == pytest.approx(
        0.25 * first.total, abs=len(first.alive) if criterion == "layerwise" else 1
    )
    assert all(torch.equal(keep, again.alive[n]) for n, keep in first.alive.items())


def test_a_random_mask_has_the_layerwise_density_and_is_the_same_for_the_same_values(network):
    drawn, ranked = (prune_to_density(network, Mask.full(network), 0.3, c) for c in ("random", "layerwise"))
    again = prune_to_density(network, Mask.full(network), 0.3, "random")
    for name, keep in drawn.alive.items():
        assert keep.sum() == ranked.alive[name].sum(), name
        assert torch.equal(keep, again.alive[name])
    # Of what is ranked first, a draw keeps about its share.
    both = sum(int((keep & ranked.alive[n]).sum()) for n, keep in drawn.alive.items())
    assert both / drawn.nnz == pytest.approx(0.3, abs=0.02)
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)
    assert drawn.distance(prune_to_density(network, Mask.full(network), 0.3, "random")) > 0


def test_exempt_layers_keep_everything_and_the_others_pay(network):
    mask = prune_to_density(network, Mask.full(network), 0.5, "global", ("output.*", "*dwconv*"))
    for name, keep in mask.alive.items():
        assert keep.all() or not ("output" in name or "dwconv" in name)
    assert mask.nnz == round(mask.total * 0.5)


def test_unreachable_densities_unknown_criteria_and_masks_that_do_not_fit_are_refused(network):
    full = Mask.full(network)
    for density, criterion, exempt in ((0.0, "global", ()), (0.01, "global", ("*",)), (0.5, "best", ())):
        with pytest.raises(MaskError):
            prune_to_density(network, full, density, criterion, exempt)
    with pytest.raises(MaskError, match=r"torch\.bool"):
        Mask({"a": torch.ones(3)})
    other = dict(full.alive)
    name = next(iter(other))
    for broken in ({n: k for n, k in other.items() if n != name}, other | {name: other[name].flatten()}):
        with pytest.raises(MaskError, match="mask"):
            prune_to_density(network, Mask(broken), 0.5, "global")


@pytest.mark.parametrize("criterion", ["global", "layerwise"])
def test_mirl_prunes_by_percentiles_over_nonzero_weights(network, criterion):
    """Three rounds, against the published rule written with NumPy alone."""
    mask = Mask.full(network, gains=True)
    assert set(mask.alive) == {n for n, _ in network.named_parameters() if "weight" in n}
    expected = {n: np.ones(keep.shape, bool) for n, keep in mask.alive.items()}
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            for n, keep in mask.alive.items():
                network.get_parameter(n).copy_(torch.randn(keep.shape) * keep)
        weights = {n: network.get_parameter(n).detach().numpy() for n in mask.alive}
        everywhere = np.concatenate([w.ravel() for w in weights.values()])
        for n, w in weights.items():
            among = everywhere if criterion == "global" else w
            percent = 10 if criterion == "layerwise" and n == "output.weight" else 20
            expected[n] &= ~(np.abs(w) < np.percentile(np.abs(among[among != 0]), percent))
        mask = prune_as_mirl(network, mask, 0.2, criterion)
        assert all(np.array_equal(keep.numpy(), expected[n]) for n, keep in mask.alive.items())
    if criterion == "global":
        assert mask.density == pytest.approx(0.8**3, abs=1e-3)
    else:
        assert mask.alive["output.weight"].float().mean() == pytest.approx(0.9**3, abs=0.02)
