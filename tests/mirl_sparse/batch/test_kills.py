"""Drivers, workers and raylets are killed at random; every good photo is done once, every bad one named."""

import os
import sys

import pytest

from benchmarks.batch.kills import KillTest, run_kill_test

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_ten_kills_lose_nothing(engine, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray", reason="the extra ray is not installed")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    assert (
        run_kill_test(KillTest(engine, photos=200, bad=20, kills=10, sides=(32, 160), seed=1), tmp_path) == []
    )
