"""Test the latency criterion: budgets, prices of weights and channels, and the prices of a run."""

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from tiny import settings

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Quantity
from mirl_sparse.performance.cost import CostModel
from mirl_training.pruning import (
    Mask,
    MaskError,
    PromptIRClock,
    prune_to_latency,
)
from mirl_training.runs import Run, RunConfig, pruner

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")


@pytest.fixture
def model() -> CostModel:
    """Prices that need no measurement: whatever is done takes a nanosecond."""
    return CostModel(defaultdict(lambda: 1e-9))


@pytest.fixture
def clock(network, model) -> PromptIRClock:
    return PromptIRClock(network, model)


@pytest.fixture
def importance(network) -> dict[str, torch.Tensor]:
    """Drawn anew for every weight, so that no two are as important."""
    generator = torch.Generator().manual_seed(0)
    return {n: torch.rand(keep.shape, generator=generator) for n, keep in Mask.full(network).alive.items()}


def test_the_budget_is_kept_and_used_up_and_rounds_are_nested(network, importance, clock):
    full = Mask.full(network)
    dense, mask = clock.seconds(full), full
    assert prune_to_latency(clock, importance, full, 2 * dense).nnz == full.nnz
    for speedup in (1.2, 1.5):
        smaller = prune_to_latency(clock, importance, mask, dense / speedup)
        assert 0.99 * dense / speedup < clock.seconds(smaller) <= dense / speedup
        assert smaller.nnz < mask.nnz
        assert all(bool((mask.alive[n] | ~keep).all()) for n, keep in smaller.alive.items())
        mask = smaller


def test_weights_at_low_resolution_cost_less_and_stay(network, importance, clock):
    cost = clock.seconds_per_weight()
    first, latent = "encoder_level1.0.ffn.project_in.weight", "latent.0.ffn.project_in.weight"
    assert cost[first] > 30 * cost[latent]
    assert cost[latent] > 0
    full = Mask.full(network)
    mask = prune_to_latency(clock, importance, full, clock.seconds(full) / 1.4)
    density = {n: keep.float().mean().item() for n, keep in mask.alive.items()}
    assert density[first] < density[latent] - 0.3
    assert all(bool(mask.alive[n].all()) for n, price in cost.items() if price == 0)


def test_of_equal_price_the_more_important_weight_stays(network, importance, clock):
    full = Mask.full(network)
    mask = prune_to_latency(clock, importance, full, clock.seconds(full) / 1.4)
    name = "reduce_chan_level2.weight"  # no hidden channels
    alive, pruned = importance[name][mask.alive[name]], importance[name][~mask.alive[name]]
    assert len(alive)
    assert len(pruned)
    assert alive.min() > pruned.max()


def test_no_weight_is_kept_of_a_hidden_channel_that_is_not_computed(network, importance, clock):
    full = Mask.full(network)
    mask = prune_to_latency(clock, importance, full, clock.seconds(full) / 1.5)
    dead = 0
    for group in clock.channels():
        alive = [view(mask.alive[n]) for n, view in group.parts.items()]
        every = torch.stack([part.any(2).all(0) for part in alive]).all(0)
        assert not any(bool(part[:, ~every].any()) for part in alive)
        dead += int((~every).sum())
    assert dead


def test_where_channels_cost_more_than_weights_whole_channels_go(network, importance):
    clock = PromptIRClock(network, CostModel(defaultdict(lambda: 1e-12, gate=1e-6)))
    full = Mask.full(network)
    mask = prune_to_latency(clock, importance, full, clock.seconds(full) / 2)
    rows = mask.alive["refinement.0.ffn.project_in.weight"].float().mean((1, 2, 3))
    assert 0.1 < (rows > 0).float().mean() < 0.9
    assert rows[rows > 0].mean() > 0.95


def test_exempt_layers_stay_and_an_unreachable_budget_is_refused(network, importance, clock):
    full = Mask.full(network)
    dense = clock.seconds(full)
    mask = prune_to_latency(clock, importance, full, dense / 1.2, ("*dwconv*",))
    assert all(bool(keep.all()) for n, keep in mask.alive.items() if "dwconv" in n)
    with pytest.raises(MaskError, match="cannot be reached"):
        prune_to_latency(clock, importance, full, dense / 1e6)


def test_a_run_goes_on_with_the_prices_it_began_with(photos, tmp_path, monkeypatch, model):
    values = settings().to_dict()
    values["pruning"] = {"criterion": "latency", "speedup": 1.5, "rounds": 2}
    monkeypatch.setattr(pruner, "cost_model", lambda: CostModel(dict.fromkeys(Quantity, 1e-9)))
    whole = Run(RunConfig(**values), photos, tmp_path / "whole", lambda _: None).go()

    class Stop(Exception):
        pass

    def stop(report: dict) -> None:
        if report["round"] == 1:
            raise Stop

    with pytest.raises(Stop):
        Run(RunConfig(**values), photos, tmp_path / "again", stop).go()
    monkeypatch.setattr(pruner, "cost_model", lambda: pytest.fail("measured anew"))
    again = Run(RunConfig(**values), photos, tmp_path / "again", lambda _: None).go()
    for name in ("mask", "weights"):
        assert (
            Path(whole, f"{name}.safetensors").read_bytes() == Path(again, f"{name}.safetensors").read_bytes()
        )


def test_weights_of_equal_worth_can_all_go():
    """The multiplier at which they do is rounded: 1 / 3e-9 * 3e-9 is less than 1."""

    class Weights:
        network = torch.nn.Linear(4, 4, bias=False)

        def seconds(self, mask: Mask) -> float:
            return mask.nnz * 3e-9

        def seconds_per_weight(self) -> dict[str, float]:
            return {"weight": 3e-9}

        def channels(self) -> list:
            return []

    full = Mask.full(Weights.network)
    assert prune_to_latency(Weights(), full.alive, full, 0.0).nnz == 0
