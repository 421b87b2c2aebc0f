"""The benchmark on the CPU reports right contenders only, and its profile adds up."""

import json
import time
from statistics import median

import pytest
import torch

from mirl_kernels.core import cpu
from mirl_sparse import UserError
from mirl_sparse.performance import comparison
from mirl_sparse.performance.bench import SPARSE, SPARSE_BFLOAT16, bench
from mirl_sparse.performance.comparison import Candidate, Comparison
from mirl_sparse.performance.oracle import expected
from mirl_sparse.performance.peers import COMPILED, EAGER
from mirl_sparse.performance.profile import profile
from mirl_sparse.runtime.restorer import SparseRestorer

IMAGE = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0))
# What results of the suite and the report read.
RESULT_KEYS = {
    *("shape", "processor", "threads", "isa", "torch", "python", "allocator"),
    *("rows", "left_out", "strongest_dense", "profile"),
}
DENSE_KEYS = {"median", "p20", "p80", "runs", "times", "first_call", "second_call", "difference", "psnr"}
PROFILE_KEYS = {"gflops_peak", "gbytes_peak", "steps", "seconds", "macs", "bytes", "limit", "fraction"}


def test_rows_hold_times_differences_and_ratios(network):
    result = bench(network, IMAGE, runs=3, dense=EAGER)
    rows = result.rows
    dense = [name for name in rows if name not in (SPARSE, SPARSE_BFLOAT16)]
    assert (SPARSE_BFLOAT16 in rows) == (cpu.bfloat16_unit() is not cpu.Bfloat16Unit.NONE)
    assert {"dense eager", "dense channels_last"} <= set(dense)
    if result.allocator == "tuned":
        assert "dense eager, stock allocator" in dense
    for row in rows.values():
        assert 0 < row.p20 <= row.median <= row.p80
        assert row.first_call > 0
    assert rows[SPARSE].difference <= 1e-5
    assert rows[SPARSE].psnr > 100
    strongest = min(dense, key=lambda name: rows[name].median)
    assert result.strongest_dense == strongest
    for speedup, over in ((rows[SPARSE].speedup, strongest), (rows[SPARSE].over_default, dense[0])):
        assert speedup.over == over
        by_round = [s / f for s, f in zip(rows[over].times, rows[SPARSE].times, strict=True)]
        assert speedup.ratio == pytest.approx(median(by_round))
        assert speedup.low <= speedup.ratio <= speedup.high


def test_json_has_the_keys_that_the_report_reads(network):
    result = bench(network, IMAGE, runs=1, dense=EAGER).to_dict()
    assert json.loads(json.dumps(result)) == result
    assert set(result) == RESULT_KEYS
    assert result["shape"] == [1, 3, 32, 40]
    assert set(result["rows"][SPARSE]) == DENSE_KEYS | {"speedup", "over_default"}
    assert set(result["rows"]["dense eager"]) == DENSE_KEYS
    assert set(result["rows"][SPARSE]["speedup"]) == {"over", "ratio", "low", "high"}
    assert set(result["profile"]) == PROFILE_KEYS
    assert set(result["profile"]["steps"][0]) == {"name", "op", "seconds", "macs", "bytes", "limit"}


def test_a_dense_contender_far_behind_is_dropped_after_the_trial(network):
    right = expected(network, IMAGE)
    sparse = {name: Candidate(SparseRestorer(network), right) for name in ("a", "b")}
    turns = Comparison(network, right, sparse, IMAGE, EAGER)
    default, *others = turns.dense
    assert turns.entered() == ["b", default, *others, "a"]
    near, far = others
    turns.times |= {
        default: [9.0] * comparison._TRIAL,
        near: [2.0, 2.0, 9.0, 2.0, 2.0],
        far: [3.1] * comparison._TRIAL,
    }
    assert turns.entered() == ["b", default, near, "a"]
    turns.times[far][:3] = [2.9] * 3
    assert turns.entered() == ["b", default, far, near, "a"]


def test_a_slower_contender_is_reported_slower(network, monkeypatch):
    forward = SparseRestorer.forward
    monkeypatch.setattr(SparseRestorer, "forward", lambda self, x: time.sleep(0.2) or forward(self, x))
    result = bench(network, IMAGE, runs=2, dense=EAGER)
    assert result.rows[SPARSE].median > 0.2
    assert result.rows[SPARSE].speedup.ratio < 1


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_wrong_result_is_not_timed(network, monkeypatch, wrong):
    forward = SparseRestorer.forward
    monkeypatch.setattr(SparseRestorer, "forward", lambda self, x: forward(self, x) + wrong)
    with pytest.raises(UserError, match="nothing is timed"):
        bench(network, IMAGE, runs=1, dense=EAGER)


def test_one_wrong_candidate_leaves_the_others_alone(network):
    right = expected(network, IMAGE)
    sparse = {
        "right": Candidate(SparseRestorer(network), right),
        "wrong": Candidate(lambda x: network(x) + 1e-3, right),
    }
    with torch.no_grad():
        turns = Comparison(network, right, sparse, IMAGE, EAGER)
        turns.round()
    result = turns.result()
    assert result.rows["right"].speedup
    assert "wrong" not in result.rows
    assert "differs" in result.left_out["wrong"]


@pytest.mark.slow
def test_compiled_contenders_are_timed(network):
    result = bench(network, IMAGE, runs=2, dense=[*EAGER, *COMPILED])
    assert {"dense compiled", "dense compiled channels_last"} <= set(result.rows)


def test_the_profile_names_every_layer_and_adds_up(network):
    result = profile(network, IMAGE, runs=2)
    steps = {step.name: step for step in result.steps}
    assert {"patch_embed", "encoder_level1.0", "prompt1", "up2_1", "output"} <= set(steps)
    total = result.to_dict()
    for key in ("seconds", "macs", "bytes", "limit"):
        assert total[key] == pytest.approx(sum(getattr(step, key) for step in result.steps))
    assert result.fraction == pytest.approx(result.limit / result.seconds)
    for step in result.steps:
        by_arithmetic = 2 * step.macs / result.gflops_peak / 1e9
        assert step.limit == pytest.approx(max(by_arithmetic, step.bytes / result.gbytes_peak / 1e9))
        assert step.seconds > 0
    pixels = IMAGE.shape[2] * IMAGE.shape[3]
    assert steps["output"].macs == int(network.output.weight.count_nonzero()) * pixels
    assert steps["output"].bytes >= 4 * (16 + 3) * pixels
