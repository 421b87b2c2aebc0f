"""The study of phases builds its kernels, and its phases add up to the time of a run."""

import re
import shutil
import subprocess
import sys

import pytest

from benchmarks.studies.phases import ROOT, phases


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cmake"), reason="cmake is not on the path")
def test_phases_add_up_to_the_time_of_a_run():
    command = [sys.executable, "-m", "benchmarks.studies.phases", "small", "--size", "64", "--runs", "5"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    threads = int(re.search(r"of (\d+) threads", run.stdout)[1])
    times = {
        name: float(value) for name, value in re.findall(r"^\| ([\w ]+) \| ([\d.]+) \|$", run.stdout, re.M)
    }
    total = times.pop("whole run")
    assert list(times) == phases()
    assert all(times[name] > 0 for name in ("norm", "expand", "qk_taps", "gram", "apply", "gate", "project"))
    busy = sum(times.values()) - times["waiting"]
    assert 0.5 * total < busy < 1.1 * threads * total
