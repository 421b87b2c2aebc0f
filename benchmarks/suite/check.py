"""Check that no speed-up is worse than the committed one.

    make bench-check

Times the quick cases again and compares ratios, never times, with `results/<instruction set>/quick.jsonl`. A
contender of ours fails if its speed-up over the same dense run fell by more than a tenth, with 95% certainty,
or if its result is wrong; PyTorch's own sparse formats are not judged. The exit status is then 1. A case
whose speed-up fell by more than a tenth is measured up to three times, and all its rounds are taken together,
since more rounds leave less noise.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.suite import results
from benchmarks.suite.rows import Ratio, Row
from mirl_sparse.performance.environment import environment
from mirl_sparse.performance.timing import ratio

ROOT = Path(__file__).parents[2]
LOSS = 0.10
_TRIES = 3
_ONE_SIDED = 1.645 / 1.96  # from half a two-sided interval of 95% to a one-sided one


class Change(NamedTuple):
    """Hold how a speed-up changed.

    Attributes:
        lost: Fraction of the speed-up that is lost; 1 where there is no result.
        noise: How much of that may be noise.
        message: What to print about it.
    """

    lost: float
    noise: float
    message: str

    @property
    def suspected(self) -> bool:
        """Return whether more than `LOSS` is lost, noise included."""
        return self.lost > LOSS

    @property
    def confirmed(self) -> bool:
        """Return whether more than `LOSS` is lost beyond noise."""
        return self.lost > LOSS + self.noise


def _half_width(r: Ratio) -> float:
    """Return half the confidence interval of a ratio, relative to the ratio."""
    return (r["high"] - r["low"]) / 2 / r["ratio"]


def change(before: Row, tries: list[list[Row]]) -> Change:
    """Return how a speed-up changed.

    Args:
        before: The committed row of a sparse contender.
        tries: Rows of today, one list for each time that they were measured.
    """
    slow: list[float] = []
    fast: list[float] = []
    speedup, missing = before["speedup"], Row(left_out="was not measured")
    for rows in tries:
        here = {row["contender"]: row for row in rows if row["case"] == before["case"]}
        if not here:
            continue
        today, dense = (here.get(name, missing) for name in (before["contender"], speedup["over"]))
        if "left_out" in today:
            return Change(1, 0, today["left_out"])
        if "left_out" in dense:
            return Change(1, 0, f"{speedup['over']}, which it was compared with, {dense['left_out']}")
        both = min(len(dense["times"]), len(today["times"]))
        slow += dense["times"][:both]
        fast += today["times"][:both]
    if not fast:
        return Change(1, 0, missing["left_out"])
    measured = ratio(slow, fast)
    now = Ratio(ratio=measured.ratio, low=measured.low, high=measured.high)
    lost = 1 - now["ratio"] / speedup["ratio"]
    noise = _ONE_SIDED * (_half_width(speedup) ** 2 + _half_width(now) ** 2) ** 0.5
    message = (
        f"{speedup['ratio']:.2f}x over {speedup['over']} became {now['ratio']:.2f}x: {lost:.0%} less,"
        f" {noise:.0%} of which may be noise"
    )
    return Change(lost, noise, message)


def worse(before: list[Row], measure: Callable[[set[str]], list[Row]]) -> dict[tuple[str, str], str]:
    """Return what got worse, and how, by case and contender.

    Args:
        before: The committed rows.
        measure: Returns the rows of the named cases, measured now; of all cases if none is named.
    """
    compared = [row for row in before if "speedup" in row and row["contender"].startswith("sparse ")]
    tries: list[list[Row]] = []
    again: set[str] = set()
    for _ in range(_TRIES):
        tries.append(measure(again))
        changes = {(row["case"], row["contender"]): change(row, tries) for row in compared}
        again = {case for (case, _), changed in changes.items() if changed.suspected}
        if not again:
            break
    return {key: changed.message for key, changed in changes.items() if changed.confirmed}


def measure(cases: set[str]) -> list[Row]:
    """Measure the quick cases of these names, or all if there are none."""
    with tempfile.TemporaryDirectory() as folder:
        suite = str(Path(__file__).with_name("test_suite.py"))
        command = [sys.executable, "-m", "pytest", "-q", suite, "--quick"]
        command += ["--results", folder, "--benchmark-columns=median,rounds"]
        if cases:
            command += ["-k", " or ".join(f"({' and '.join(case.split())})" for case in sorted(cases))]
        subprocess.run(command, cwd=ROOT)  # a wrong result fails there; `change` reports it
        path = results.path("quick", Path(folder))
        return results.read(path) if path.exists() else []


def main() -> None:
    path = results.path("quick")
    if not path.exists():
        sys.exit(
            f"{path}: no results for such a machine yet; make bench-quick writes them, for you to commit"
        )
    before, here = results.read(path), environment()
    committed = before[0]
    for name, there, today in (
        ("threads", committed["threads"], here.threads),
        ("torch", committed["torch"], here.torch),
    ):
        if there != today:
            print(
                f"{name} is {today}, the committed results are from {there}:"
                " ratios may differ for that reason alone"
            )
    losses = worse(before, measure)
    for (case, contender), message in losses.items():
        print(f"{case}, {contender}: {message}")
    if losses:
        sys.exit(1)
    print(f"no speed-up of {path.name} fell by more than {LOSS:.0%} beyond noise")


if __name__ == "__main__":
    main()
