"""The ops on each instruction set, and with a cache so small that images fall into many strips."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from example_counts import SHARE

from mirl_kernels.core import cpu
from mirl_kernels.core.roofline import Machine, measure


def _supported(isa: str) -> bool:
    code = "from mirl_kernels.core import cpu; print(cpu.isa())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MIRL_CPU_ISA": isa}, capture_output=True, text=True
    )
    if "which this processor cannot run" in done.stderr:
        return False
    assert done.stdout.strip() == isa, done.stderr  # a build that crashes is no missing instruction set
    return True


_QUICK = [("avx512", "4096", 0.2), ("avx2", "1000000", 0.2), ("portable", "4096", 0.2)]
_ALL = [(isa, cache, 1.0) for isa in ("avx512", "avx2", "portable") for cache in ("4096", "1000000")]


@pytest.mark.native
@pytest.mark.parametrize(
    ("isa", "cache", "share"), [*_QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in _ALL)]
)
def test_every_build_passes_the_ops_tests(isa, cache, share):
    if not _supported(isa):
        assert isa != "portable"
        pytest.skip(f"this processor has no {isa}")
    env = {**os.environ, "MIRL_CPU_ISA": isa, "MIRL_L2_BYTES": cache, SHARE: str(share)}
    tests = Path(__file__).parents[1] / "ops"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tests), "-p", "no:cacheprovider"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.native
def test_the_roofline_is_that_of_a_machine():
    """A processor of this century does a multiply-add per cycle and lane, and copies faster than a disk."""
    machine = measure()
    lanes = cpu.LANES[cpu.isa()]
    assert 1e9 * lanes < machine.flops < 1e14
    assert 1e9 < machine.bandwidth < 1e13


def test_the_limit_is_the_slower_of_arithmetic_and_memory():
    machine = Machine(flops=100.0, bandwidth=10.0)
    assert machine.limit(macs=50, moved=5) == 1.0
    assert machine.limit(macs=5, moved=20) == 2.0
