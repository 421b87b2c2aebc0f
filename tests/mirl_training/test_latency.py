"""The latency criterion: budgets are kept and used up, cheap weights stay, a run keeps its prices."""

from collections import defaultdict
from pathlib import Path

import pytest
from tiny import settings

from mirl_kernels import _cpu
from mirl_sparse.cost import CostModel
from mirl_training import run as running
from mirl_training.config import RunConfig
from mirl_training.latency import prices, prune_to_latency, seconds
from mirl_training.masks import Mask, MaskError
from mirl_training.run import Run

pytestmark = pytest.mark.skipif(not _cpu.available(), reason="the C++ kernels were not built")


@pytest.fixture
def model() -> CostModel:
    """Prices that need no measurement: whatever is done takes a nanosecond."""
    return CostModel(defaultdict(lambda: 1e-9))


def test_the_budget_is_kept_and_used_up_and_rounds_are_nested(network, model):
    full = Mask.full(network)
    dense, mask = seconds(network, full, model), full
    for speedup in (1.2, 1.5):
        smaller = prune_to_latency(network, mask, dense / speedup, model)
        assert 0.99 * dense / speedup < seconds(network, smaller, model) <= dense / speedup
        assert smaller.kept < mask.kept
        assert all(bool((mask.alive[n] | ~keep).all()) for n, keep in smaller.alive.items())
        mask = smaller


def test_weights_at_low_resolution_cost_less_and_stay(network, model):
    cost = prices(network, model)
    first, latent = "encoder_level1.0.ffn.project_in.weight", "latent.0.ffn.project_in.weight"
    assert cost[first] > 30 * cost[latent]
    assert cost[latent] > 0
    mask = prune_to_latency(network, Mask.full(network), seconds(network, Mask.full(network), model) / 1.4, model)
    density = {n: keep.float().mean().item() for n, keep in mask.alive.items()}
    assert density[first] < density[latent] - 0.3
    assert all(bool(mask.alive[n].all()) for n, price in cost.items() if price == 0)


def test_exempt_layers_stay_and_what_cannot_be_reached_is_said(network, model):
    full = Mask.full(network)
    dense = seconds(network, full, model)
    mask = prune_to_latency(network, full, dense / 1.2, model, ("*dwconv*",))
    assert all(bool(keep.all()) for n, keep in mask.alive.items() if "dwconv" in n)
    with pytest.raises(MaskError, match="cannot be reached"):
        prune_to_latency(network, full, dense / 1e6, model)


def test_a_run_goes_on_with_the_prices_it_began_with(photos, tmp_path, monkeypatch, model):
    given = settings().to_dict()
    given["pruning"] = {"criterion": "latency", "speedup": 1.5, "rounds": 2}
    names = set()

    class Recorded(dict):
        def __missing__(self, name: str) -> float:
            names.add(name)
            self[name] = 1e-9
            return 1e-9

    monkeypatch.setattr(running, "cost_model", lambda: CostModel(Recorded()))
    whole = Run(RunConfig(**given), photos, tmp_path / "whole", lambda _: None).go()
    assert names

    class Stop(Exception):
        pass

    def stop(report: dict) -> None:
        if report["round"] == 1:
            raise Stop

    with pytest.raises(Stop):
        Run(RunConfig(**given), photos, tmp_path / "again", stop).go()
    monkeypatch.setattr(running, "cost_model", lambda: pytest.fail("measured anew"))
    again = Run(RunConfig(**given), photos, tmp_path / "again", lambda _: None).go()
    for name in ("mask", "weights"):
        assert Path(whole, f"{name}.safetensors").read_bytes() == Path(again, f"{name}.safetensors").read_bytes()
