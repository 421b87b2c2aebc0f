"""The cost model: everything is priced, prices are kept, predictions are about right."""

import json
import time
from collections import Counter

import numpy as np
import pytest
import torch

from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.performance import cost
from mirl_sparse.runtime.cpu import Engine


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """A cache of its own, and a measurement that takes no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cost._cost_model.cache_clear()
    measured = []

    def measure():
        measured.append(1)
        return cost.CostModel({"call": 2.0})

    monkeypatch.setattr(cost, "measure", measure)
    yield measured, tmp_path / "mirl-sparse" / "prices.json"
    cost._cost_model.cache_clear()


def test_a_machine_is_measured_once(cached):
    measured, file = cached
    assert cost.cost_model().prices == {"call": 2.0}
    cost._cost_model.cache_clear()  # as in another process
    assert cost.cost_model().prices == {"call": 2.0}
    assert len(measured) == 1
    assert list(json.loads(file.read_text()).values()) == [{"call": 2.0}]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_a_broken_cache_is_measured_again(cached, content):
    measured, file = cached
    file.parent.mkdir()
    file.write_text(content)
    assert cost.cost_model().prices == {"call": 2.0}
    assert len(measured) == 1


def test_a_cache_that_cannot_be_written_is_no_error(cached, monkeypatch):
    monkeypatch.setattr(cost, "write_whole", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
    assert cost.cost_model().prices == {"call": 2.0}


def test_what_waits_for_others_is_measured_roughly(monkeypatch):
    monkeypatch.setattr(cost, "_samples", lambda: iter([(Counter(call=1), lambda: time.sleep(0.01))]))
    waited = cost.measure()
    assert waited.rough
    assert waited.prices["call"] == pytest.approx(0.01, rel=0.5)
    monkeypatch.setattr(time, "process_time", time.perf_counter)  # as if it had worked all the time
    assert not cost.measure().rough


def test_a_busy_machine_is_measured_again(cached, monkeypatch):
    _, file = cached
    monkeypatch.setattr(cost, "measure", lambda: cost.CostModel({"call": 3.0}, rough=True))
    with pytest.warns(UserWarning, match="busy with other work"):
        assert cost.cost_model().prices == {"call": 3.0}
    assert not file.exists()


def test_other_threads_have_other_prices(cached):
    threads = torch.get_num_threads()
    cost.cost_model()
    try:
        torch.set_num_threads(threads + 1)
        cost.cost_model()
    finally:
        torch.set_num_threads(threads)
    assert len(cached[0]) == 2


def test_seconds_are_prices_times_counts():
    model = cost.CostModel({"call": 2.0, "entry": 0.5})
    assert model.seconds(Counter(call=1, entry=6)) == 5.0


@pytest.fixture(scope="module")
def model():
    return cost.measure()


def network(density: float) -> PromptIR:
    made = PromptIR(PromptIRConfig(dim=24, num_blocks=(2, 2, 2, 2), num_refinement_blocks=2))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.mul_(torch.rand(p.shape, generator=g) < density)
    return made.eval()


@pytest.mark.slow
def test_everything_has_a_price_and_none_is_negative(model):
    quantities = Counter()
    for op, shape in Engine(network(1.0)).calls(1, 256, 256):
        quantities += op.quantities(*shape)
    assert set(quantities) <= set(model.prices)
    assert min(model.prices.values()) >= 0


@pytest.mark.slow
def test_predictions_are_about_right_and_order_masks(model):
    """Within a third of what is measured here, a machine that others use as well; benchmarks/cost.py says more."""
    image, predicted = torch.rand(1, 3, 256, 256), []
    for density in (0.05, 0.2, 1.0):
        engine = Engine(network(density))
        engine(image)
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            engine(image)
            times.append(time.perf_counter() - begin)
        predicted.append(model.engine(engine))
        assert predicted[-1] == pytest.approx(float(np.median(times)), rel=0.33)
    assert predicted == sorted(predicted)
