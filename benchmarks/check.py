"""Has a ratio got worse since the committed results?

    make bench-check

Times the quick cases again and compares ratios, never times, with `results/<instruction set>/quick.jsonl`. A sparse contender fails
when its speed-up over the same dense run fell by more than a tenth, with 95% certainty, or when its result is wrong; the exit status
is 1 then. What fell by more than a tenth is measured up to three times, and its rounds taken together: the more there are, the less
may be noise.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import results

from mirl_sparse.performance.environment import environment
from mirl_sparse.performance.timing import ratio

LOSS = 0.10
_TRIES = 3
_ONE_SIDED = (
    1.645 / 1.96
)  # what is as far off as half an interval of 95% is so in one direction half as often


class Change(NamedTuple):
    """By which part a speed-up fell, how much of that may be noise, and what to say of it."""

    lost: float
    noise: float
    said: str

    @property
    def suspected(self) -> bool:
        return self.lost > LOSS

    @property
    def found(self) -> bool:
        return self.lost > LOSS + self.noise


def _half(r: dict[str, float]) -> float:
    return (r["high"] - r["low"]) / 2 / r["ratio"]


def change(before: results.Row, tries: list[list[results.Row]]) -> Change:
    """How a speed-up changed: ``tries`` are today's rows, of every time that they were measured."""
    slow: list[float] = []
    fast: list[float] = []
    speedup, missing = before["speedup"], {"left_out": "was not measured"}
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
    now = asdict(ratio(slow, fast))
    lost, noise = (
        1 - now["ratio"] / speedup["ratio"],
        _ONE_SIDED * (_half(speedup) ** 2 + _half(now) ** 2) ** 0.5,
    )
    return Change(lost, noise, f"{speedup['ratio']:.2f}x over {speedup['over']} became {now['ratio']:.2f}x: {lost:.0%} less,"
                               f" {noise:.0%} of which may be noise")  # fmt: skip


def worse(
    before: list[results.Row], measure: Callable[[set[str]], list[results.Row]]
) -> dict[tuple[str, str], str]:
    """What got worse, by case and contender, and how; ``measure`` gives the rows of the cases named, or of all."""
    compared = [row for row in before if "speedup" in row]
    tries: list[list[results.Row]] = []
    again: set[str] = set()
    for _ in range(_TRIES):
        tries.append(measure(again))
        changes = {(row["case"], row["contender"]): change(row, tries) for row in compared}
        again = {case for (case, _), how in changes.items() if how.suspected}
        if not again:
            break
    return {key: how.said for key, how in changes.items() if how.found}


def measure(cases: set[str]) -> list[results.Row]:
    """The quick cases of these names, or all."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("test_suite.py")), "--quick",
                   "--results", folder, "--benchmark-columns=median,rounds"]  # fmt: skip
        if cases:
            command += ["-k", " or ".join(f"({' and '.join(case.split())})" for case in sorted(cases))]
        subprocess.run(command)  # a wrong result fails there, and is said here
        path = results.path("quick", Path(folder))
        return results.read(path) if path.exists() else []  # then all of it was not measured


def main() -> None:
    path = results.path("quick")
    if not path.exists():
        sys.exit(
            f"{path}: no results for this instruction set yet; make bench-quick writes them, for you to commit"
        )
    before, here = results.read(path), environment().to_dict()
    for key in ("processor", "threads", "torch"):
        if (there := before[0][key]) != here[key]:
            print(
                f"{key} is {here[key]}, the committed results are from {there}: ratios may differ for that reason alone"
            )
    found = worse(before, measure)
    for (case, contender), how in found.items():
        print(f"{case}, {contender}: {how}")
    if found:
        sys.exit(1)
    print(f"no speed-up of {path.name} fell by more than {LOSS:.0%} beyond noise")


if __name__ == "__main__":
    main()
