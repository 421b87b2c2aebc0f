"""Has a ratio got worse since the committed results?

    make bench-check

Times the quick cases again and compares ratios, never times, with `results/<instruction set>/quick.jsonl`. A sparse contender fails
when its speed-up over the same dense run fell by more than a tenth and the 95% intervals of both together, three times in a
row; or when its result is wrong. The exit status is 1 then.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import results

from mirl_sparse.bench import environment

LOSS = 0.10
_TRIES = 3


def loss(before: results.Row, now: results.Row, dense_now: results.Row) -> tuple[float, float]:
    """By which part a speed-up fell, and how much of that may be noise. ``dense_now`` is today's row of what the speed-up was over."""
    ratio = dense_now["median"] / now["median"]
    noise = sum(((r["speedup"]["high"] - r["speedup"]["low"]) / 2 / r["speedup"]["ratio"]) ** 2 for r in (before, now))
    return 1 - ratio / before["speedup"]["ratio"], noise**0.5


def failures(before: list[results.Row], now: list[results.Row]) -> dict[tuple[str, str], str]:
    """What got worse, by case and contender, and how."""
    found = {(row["case"], row["contender"]): row for row in now}
    worse = {}
    for row in before:
        key = row["case"], row["contender"]
        if "speedup" not in row:
            continue
        today = found.get(key, {"left_out": "was not measured"})
        dense = found.get((row["case"], row["speedup"]["over"]), {"left_out": "was not measured"})
        if "left_out" in today:
            worse[key] = today["left_out"]
        elif "left_out" in dense:
            worse[key] = f"{row['speedup']['over']}, which it was compared with, {dense['left_out']}"
        else:
            lost, noise = loss(row, today, dense)
            if lost > LOSS + noise:
                worse[key] = (
                    f"{row['speedup']['ratio']:.2f}x over {row['speedup']['over']} became"
                    f" {row['speedup']['ratio'] * (1 - lost):.2f}x: {lost:.0%} less, {noise:.0%} of which may be noise"
                )
    return worse


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
        sys.exit(f"{path}: no results for this instruction set yet; make bench-quick writes them, for you to commit")
    before, here = results.read(path), environment()
    for key in ("processor", "threads", "torch"):
        if (there := before[0][key]) != here[key]:
            print(
                f"{key} is {here[key]}, the committed results are from {there}: ratios may differ for that reason alone"
            )
    worse = failures(before, measure(set()))
    for _ in range(_TRIES - 1):
        if worse:
            again = {case for case, _ in worse}
            worse = failures([row for row in before if row["case"] in again], measure(again))
    for (case, contender), how in worse.items():
        print(f"{case}, {contender}: {how}")
    if worse:
        sys.exit(1)
    print(f"no speed-up of {path.name} fell by more than {LOSS:.0%} and noise")


if __name__ == "__main__":
    main()
