"""Compare every op with its reference in float64 on the GPU: the tests of the ops, told as they go."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.setting import Setting

_TESTS = Path(__file__).parents[2] / "tests" / "triton" / "test_ops.py"
# In doubt first: mdta has the products whose first factor is in registers (`hazards`).
_FIRST = ("test_mdta_is_the_reference", "test_gram_matrices_of_wide_heads_are_summed_in_blocks_and_shares")


class _Told:
    """Put the outcome of each test into a queue; pytest calls the methods."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[tuple[str, str, str] | None] = SimpleQueue()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: item.originalname not in _FIRST)  # stable

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.failed or report.skipped:
            outcome = report.outcome if report.when == "call" else f"{report.outcome} in {report.when}"
            why = str(report.longrepr).splitlines()[-1][:300] if report.failed else ""
            self.queue.put((report.nodeid.split("::")[-1], outcome, why))


def ops(setting: Setting) -> Iterator[Figure]:
    """Yield every test that fails, and how many passed of each kind."""
    import pytest

    told = _Told()
    words = ["-q", "-p", "no:cacheprovider", "-m", "not slow", str(_TESTS)]
    if setting.rehearsal:
        words += ["-k", "gelu or wide_heads"]

    def run() -> None:
        try:
            pytest.main(words, plugins=[told])
        finally:
            told.queue.put(None)

    threading.Thread(target=run, daemon=True).start()
    found = 0
    for name, group in groupby(iter(told.queue.get, None), key=lambda each: each[0].split("[")[0]):
        counted: Counter[str] = Counter()
        for test, outcome, why in group:
            counted[outcome] += 1
            if "failed" in outcome:
                yield Figure(test, outcome, facts={"why": why})
        found += sum(counted.values())
        yield Figure(name, float(counted["passed"]), "passed", dict(counted))
    if not found:
        raise RuntimeError("no test of an op ran")
