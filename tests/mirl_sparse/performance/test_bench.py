"""The benchmark: what it reports, and that it times nothing that is wrong."""

import json
import re
import time
from statistics import median

import pytest
import torch

from mirl_sparse import UserError
from mirl_sparse.performance import bench
from mirl_sparse.performance.peers import COMPILED, EAGER, ENGINES
from mirl_sparse.runtime.restorer import SparseRestorer

IMAGE = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))


def test_rows_and_ratios(network):
    result = bench.bench(network, IMAGE, runs=3, dense=EAGER)
    rows = result["rows"]
    dense = [name for name in rows if name != bench.SPARSE]
    assert {"dense eager", "dense channels_last"} <= set(dense)
    if result["allocator"] == "tuned":
        assert "dense eager, stock allocator" in dense
    for row in rows.values():
        assert 0 < row["p20"] <= row["median"] <= row["p80"]
        assert row["first_call"] > 0
    assert rows[bench.SPARSE]["difference"] <= 1e-5
    strongest = min(dense, key=lambda name: rows[name]["median"])
    assert result["strongest_dense"] == strongest
    for key, over in (("speedup", strongest), ("over_default", dense[0])):
        found = rows[bench.SPARSE][key]
        assert found["over"] == over
        by_round = [s / f for s, f in zip(rows[over]["times"], rows[bench.SPARSE]["times"], strict=True)]
        assert found["ratio"] == pytest.approx(median(by_round))
        assert found["low"] <= found["ratio"] <= found["high"]
    assert json.loads(json.dumps(result)) == result


def test_a_slow_phase_of_the_machine_is_in_no_ratio():
    phase = [1.0] * 10 + [3.0] * 4 + [1.0] * 9
    found = bench.ratio([6 * p for p in phase], [2 * p for p in phase])
    assert found == {"ratio": 3.0, "low": 3.0, "high": 3.0}
    assert (
        bench.ratio([4.0, 5.0, 6.0, 7.0], [2.0, 2.0, 2.0])["ratio"] == 2.5
    )  # of the rounds that both are in


def test_what_is_far_behind_leaves(network):
    right = bench.expected(network, IMAGE)
    sparse = {
        "a": bench.Candidate(SparseRestorer(network), right),
        "b": bench.Candidate(SparseRestorer(network), right),
    }
    comparison = bench.Comparison(network, right, sparse, IMAGE, EAGER)
    default, *others = comparison.dense
    assert comparison.entered() == ["b", default, *others, "a"]
    near, far = others
    comparison.times |= {
        default: [9.0] * bench._TRIAL,
        near: [2.0, 2.0, 9.0, 2.0, 2.0],
        far: [3.1] * bench._TRIAL,
    }
    assert comparison.entered() == ["b", default, near, "a"]
    comparison.times[far][:3] = [2.9] * 3
    assert comparison.entered() == ["b", default, far, near, "a"]


def test_a_slower_contender_is_reported_slower(network, monkeypatch):
    forward = SparseRestorer.forward
    monkeypatch.setattr(SparseRestorer, "forward", lambda self, x: time.sleep(0.2) or forward(self, x))
    result = bench.bench(network, IMAGE, runs=2, dense=EAGER)
    assert result["rows"][bench.SPARSE]["median"] > 0.2
    assert result["rows"][bench.SPARSE]["speedup"]["ratio"] < 1


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_wrong_result_is_not_timed(network, monkeypatch, wrong):
    forward = SparseRestorer.forward
    monkeypatch.setattr(SparseRestorer, "forward", lambda self, x: forward(self, x) + wrong)
    with pytest.raises(UserError, match="nothing is timed"):
        bench.bench(network, IMAGE, runs=1, dense=EAGER)


def test_what_settles_is_not_timed():
    class Settling(bench.Turns):
        settling = 2

    turns, calls = Settling(), []

    def make():
        time.sleep(0.1)  # building counts
        return lambda: calls.append(time.sleep(0.05 if len(calls) < 3 else 0)) or IMAGE

    turns.admit("a", make, IMAGE, 0)
    assert len(calls) == 4
    assert turns._first["a"]["first_call"] > 0.15
    assert turns._first["a"]["second_call"] < 0.05


@pytest.mark.parametrize("options", [
    {"kernel_size": 3, "padding": 1}, {"kernel_size": (5, 1), "padding": (2, 0), "bias": False}, {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "dilation": 2}, {"kernel_size": 3, "padding": "same"}, {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
])  # fmt: skip
def test_expected_is_what_pytorch_gives_in_float64(options):
    layer, image = torch.nn.Conv2d(6, 6, groups=6, **options), torch.randn(2, 6, 200, 100)
    torch.testing.assert_close(
        bench.expected(layer, image), layer.double()(image.double()), rtol=0, atol=1e-13
    )


@pytest.mark.slow
def test_compiled_rows(network):
    result = bench.bench(network, IMAGE, runs=2, dense=[*EAGER, *COMPILED])
    assert {"dense compiled", "dense compiled channels_last"} <= set(result["rows"])


def test_the_profile_names_every_layer_and_adds_up(network):
    found = bench.profile(network, IMAGE, runs=2)
    steps = {row["name"]: row for row in found["steps"]}
    assert {"patch_embed", "encoder_level1.0", "prompt1", "up2_1", "output"} <= set(steps)
    for key in ("seconds", "macs", "bytes", "limit"):
        assert found[key] == pytest.approx(sum(row[key] for row in found["steps"]))
    assert found["fraction"] == pytest.approx(found["limit"] / found["seconds"])
    for row in found["steps"]:
        by_arithmetic = 2 * row["macs"] / found["gflops_peak"] / 1e9
        assert row["limit"] == pytest.approx(max(by_arithmetic, row["bytes"] / found["gbytes_peak"] / 1e9))
        assert row["seconds"] > 0
    pixels = IMAGE.shape[2] * IMAGE.shape[3]
    assert steps["output"]["macs"] == int(network.output.weight.count_nonzero()) * pixels
    assert steps["output"]["bytes"] >= 4 * (16 + 3) * pixels


def test_peers_give_the_same_result_or_are_left_out(network):
    """What is installed runs, but for what this processor or these threads rule out."""
    result = bench.bench(network, IMAGE, runs=1, dense=[*EAGER, *ENGINES])
    for name in ENGINES:
        if name not in result["rows"]:
            why = result["left_out"][name]
            assert why.startswith("not installed") or re.search(
                "no bfloat16 instructions|uses all processors", why
            ), why


def test_one_wrong_candidate_leaves_the_others_alone(network):
    right = bench.expected(network, IMAGE)
    sparse = {
        "right": bench.Candidate(SparseRestorer(network), right),
        "wrong": bench.Candidate(lambda x: network(x) + 1e-3, right),
    }
    with torch.no_grad():
        comparison = bench.Comparison(network, right, sparse, IMAGE, EAGER)
        comparison.round()
    result = comparison.result()
    assert "speedup" in result["rows"]["right"]
    assert "wrong" not in result["rows"]
    assert "differs" in result["left_out"]["wrong"]
