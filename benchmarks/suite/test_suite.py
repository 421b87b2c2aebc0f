"""Run the suite by pytest-benchmark.

It times the first sparse contender of each case. The other contenders are timed between its rounds, in turns.

    make bench-quick    # the few comparisons that make bench-check looks at
    make bench          # everything, and the report
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.suite import cases, processes
from benchmarks.suite.results import ResultStore, rows_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    quick = metafunc.config.getoption("--quick")
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases.QUICK if quick else cases.CASES, ids=str)
    if "process" in metafunc.fixturenames:
        metafunc.parametrize("process", [] if quick else processes.PROCESSES, ids=str)


def test_process(process: processes.Process, keep: ResultStore) -> None:
    """Measure processes first, while this one is small itself."""
    keep(process.measure())


@pytest.mark.parametrize("network", cases.TICKETS)
def test_profile(network: str, keep: ResultStore, pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--quick"):
        pytest.skip("not one of the quick ones")
    keep(cases.profile(network))


def test_comparison(case: cases.Case, benchmark: BenchmarkFixture, keep: ResultStore) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(case.threads or threads)
    try:
        comparison, facts = case.comparison(keep.rows)
        first = comparison.entered()[-1]

        def time_others() -> None:
            for name in comparison.entered():
                if name != first:
                    comparison.turn(name)
            comparison.ready(first)

        benchmark.group = case.section
        repeats = comparison.run(first)
        benchmark.pedantic(comparison.run, args=(first,), setup=time_others, rounds=case.runs)
        comparison.times[first] = [seconds / repeats for seconds in benchmark.stats.stats.data]
        result = comparison.result()
    finally:
        torch.set_num_threads(threads)
    for row in rows_of(result, facts, case.section, case.name, case.facts):
        keep(row)
    wrong = {name: reason for name, reason in result.left_out.items() if "differs" in reason}
    assert not wrong.keys() & facts.keys(), wrong  # peers may be wrong, the sparse contenders may not
