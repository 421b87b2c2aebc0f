"""Everything has a price, prices are kept, and predictions are about right."""

import json
import time
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.performance import prices
from mirl_sparse.performance.cost import CostModel, dense_quantities
from mirl_sparse.performance.prices import PriceStore, cost_model, measure
from mirl_sparse.performance.samples import Sample, samples
from mirl_sparse.runtime.cpu import CpuEngine


class Measurement:
    """A measurement that takes no time and counts its calls."""

    def __init__(self, price: float = 2.0, rough: bool = False) -> None:
        self.price, self.rough, self.calls = price, rough, 0

    def __call__(self) -> CostModel:
        self.calls += 1
        return CostModel({"call": self.price}, self.rough)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cache" / "prices.json"


def test_a_machine_is_measured_once(file):
    measurement = Measurement()
    store = PriceStore(file, measurement)
    assert cost_model(store).prices == {"call": 2.0}
    assert cost_model(store) is cost_model(store)
    in_another_process = PriceStore(file, measurement)
    assert cost_model(in_another_process).prices == {"call": 2.0}
    assert measurement.calls == 1
    assert list(json.loads(file.read_text()).values()) == [{"call": 2.0}]


def test_prices_are_kept_in_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "mirl-sparse" / "prices.json"
    path.parent.mkdir()
    path.write_text(json.dumps({prices.this_machine(): {"call": 5.0}}))
    assert cost_model().prices == {"call": 5.0}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_a_broken_cache_is_measured_again(file, content):
    file.parent.mkdir()
    file.write_text(content)
    measurement = Measurement()
    assert cost_model(PriceStore(file, measurement)).prices == {"call": 2.0}
    assert measurement.calls == 1
    assert {"call": 2.0} in json.loads(file.read_text()).values()


def test_a_cache_that_cannot_be_written_is_no_error(file, monkeypatch):
    monkeypatch.setattr(prices, "write_whole", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
    measurement = Measurement()
    store = PriceStore(file, measurement)
    assert cost_model(store).prices == cost_model(store).prices == {"call": 2.0}
    assert measurement.calls == 1


def test_a_process_that_waits_for_others_measures_roughly(monkeypatch):
    def ops():
        return [Sample(Counter(call=1), lambda: time.sleep(0.01))]

    waited = measure(ops())
    assert waited.rough
    assert waited.prices["call"] == pytest.approx(0.01, rel=0.5)
    monkeypatch.setattr(time, "process_time", time.perf_counter)  # as if it had worked all the time
    assert not measure(ops()).rough


def test_a_busy_machine_is_measured_again_in_the_same_process(file):
    measurement = Measurement(3.0, rough=True)
    store = PriceStore(file, measurement)
    for _ in range(2):
        with pytest.warns(UserWarning, match="busy with other work") as caught:
            assert cost_model(store).prices == {"call": 3.0}
        assert caught[0].filename == __file__
    assert measurement.calls == 2
    assert not file.exists()
    measurement.price, measurement.rough = 2.0, False
    assert cost_model(store).prices == cost_model(store).prices == {"call": 2.0}
    assert measurement.calls == 3
    assert file.exists()


def test_other_threads_have_other_prices(file):
    measurement, threads = Measurement(), torch.get_num_threads()
    store = PriceStore(file, measurement)
    cost_model(store)
    try:
        torch.set_num_threads(threads + 1)
        cost_model(store)
    finally:
        torch.set_num_threads(threads)
    assert measurement.calls == 2
    assert len(json.loads(file.read_text())) == 2


def test_seconds_are_prices_times_counts():
    model = CostModel({"call": 2.0, "entry": 0.5})
    assert model.seconds(Counter(call=1, entry=6)) == 5.0


@pytest.mark.parametrize(
    ("layer", "shape", "quantities"),
    [
        (nn.Linear(3, 5), (2, 7, 3), {"torch linear mac": 14 * 15, "torch float": 14 * 8}),
        (
            nn.Conv2d(16, 32, 3, padding=1),
            (2, 16, 4, 4),
            {"torch conv mac": 32 * 9 * 512, "torch float": 32 * 48},
        ),
        (nn.Conv2d(3, 5, 1), (3, 4, 4), {"torch 1x1 mac": 16 * 16 * 16, "torch float": 16 * 8}),
        (
            nn.Conv2d(4, 4, 3, 2, 1, groups=4),
            (1, 4, 8, 8),
            {"torch depthwise mac": 4 * 9 * 16, "torch float": 4 * 80},
        ),
        (
            nn.ConvTranspose2d(4, 2, 2, 2),
            (1, 4, 8, 8),
            {"torch transposed mac": 8 * 4 * 64, "torch float": 256 + 512},
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_dense_layers_count_multiply_adds_and_features(layer, shape, quantities):
    assert dense_quantities(layer, shape) == Counter({"torch call": 1, **quantities})


def test_attention_counts_its_four_projections():
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    macs = 10 * 8 * (8 + 4 + 6 + 8)
    floats = 10 * (16 + 12 + 14 + 16)
    assert dense_quantities(attention, (10, 8)) == Counter(
        {"torch call": 4, "torch linear mac": macs, "torch float": floats}
    )


def test_samples_cover_every_dense_kind_and_every_fused_op():
    quantities = [sample.quantities for sample in samples()]
    names = set().union(*quantities)
    kinds = ("linear", "conv", "1x1", "depthwise", "transposed")
    assert {f"torch {kind} mac" for kind in kinds} <= names
    assert {"call", "entry", "tap", "row", "gram", "score", "gate"} <= names
    assert len(quantities) == 91


@pytest.fixture(scope="module")
def model():
    return measure()


def network(density: float) -> PromptIR:
    made = PromptIR(PromptIRConfig(dim=24, num_blocks=(2, 2, 2, 2), num_refinement_blocks=2))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.mul_(torch.rand(p.shape, generator=g) < density)
    return made.eval()


@pytest.mark.quiet
@pytest.mark.slow
def test_everything_has_a_price_and_none_is_negative(model):
    quantities = Counter()
    for op, shape in CpuEngine(network(1.0)).calls(1, 256, 256):
        quantities += op.quantities(*shape)
    assert set(quantities) <= set(model.prices)
    assert min(model.prices.values()) >= 0


@pytest.mark.quiet
@pytest.mark.slow
def test_predictions_are_about_right_and_order_masks(model):
    """Within a third of what is measured on this machine, which others use as well."""
    image, predicted = torch.rand(1, 3, 256, 256), []
    for density in (0.05, 0.2, 1.0):
        engine = CpuEngine(network(density))
        engine(image)
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            engine(image)
            times.append(time.perf_counter() - begin)
        predicted.append(model.engine(engine))
        assert predicted[-1] == pytest.approx(float(np.median(times)), rel=0.33)
    assert predicted == sorted(predicted)
