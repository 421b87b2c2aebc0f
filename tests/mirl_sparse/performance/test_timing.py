"""Contenders are timed in turns once they have proved right, and ratios compare the same rounds."""

import time

import pytest
import torch

from mirl_sparse.performance.timing import Ratio, Turns, ratio

RESULT = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_slow_phase_of_the_machine_changes_no_ratio():
    phase = [1.0] * 10 + [3.0] * 4 + [1.0] * 9
    assert ratio([6 * p for p in phase], [2 * p for p in phase]) == Ratio(3.0, 3.0, 3.0)


def test_ratios_compare_only_rounds_that_both_are_in():
    assert ratio([4.0, 5.0, 6.0, 7.0], [2.0, 2.0, 2.0]).ratio == 2.5


def test_settling_calls_are_not_timed_and_building_counts_as_first_call():
    class Settling(Turns):
        settling = 2

    turns, calls = Settling(), []

    def make():
        time.sleep(0.1)
        return lambda: calls.append(time.sleep(0.05 if len(calls) < 3 else 0)) or RESULT

    turns.admit("a", make, RESULT, 0)
    assert len(calls) == 4
    assert turns._contenders["a"].first_call > 0.15
    assert turns._contenders["a"].second_call < 0.05


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_contender_with_a_wrong_result_is_left_out(wrong):
    turns = Turns()
    turns.admit("right", lambda: lambda: RESULT + 1e-5, RESULT, 1e-4)
    turns.admit("wrong", lambda: lambda: RESULT + wrong, RESULT, 1e-4)
    assert list(turns.times) == ["right"]
    assert "differs from the expected result" in turns.left_out["wrong"]


def test_rows_hold_speedups_of_sparse_contenders_only():
    turns = Turns()
    for name in ("default", "dense", "sparse"):
        turns.admit(name, lambda: lambda: RESULT, RESULT, 0)
    turns.times |= {"default": [9.0, 9.0], "dense": [4.0, 6.0], "sparse": [2.0, 3.0]}
    result = turns.compared(["default", "dense"])
    assert result.strongest_dense == "dense"
    sparse = result.rows["sparse"]
    assert (sparse.speedup.over, sparse.speedup.ratio) == ("dense", 2.0)
    assert (sparse.over_default.over, sparse.over_default.ratio) == ("default", 3.75)
    rows = result.to_dict()["rows"]
    assert rows["sparse"]["speedup"] == {"over": "dense", "ratio": 2.0, "low": 2.0, "high": 2.0}
    assert not {"speedup", "over_default"} & set(rows["dense"])
    assert rows["dense"]["times"] == [4.0, 6.0]
    assert rows["dense"]["median"] == 5.0
