"""Select from the results of one machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.suite.cases import SMALL
from benchmarks.suite.rows import Row
from mirl_sparse.performance.peers import DENSE


class MachineResults:
    """Hold the rows of one machine.

    Attributes:
        rows: All rows.
        machine: A row that describes the machine.
    """

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.machine = next(row for row in rows if "allocator" in row)

    def section(self, name: str, **facts: Any) -> list[Row]:
        """Return the rows of a section that have these facts."""
        return [r for r in self.rows if r["section"] == name and all(r.get(k) == v for k, v in facts.items())]

    def has_sections(self, *names: str) -> bool:
        """Return whether every one of these sections has rows."""
        return all(map(self.section, names))

    def timed(self, name: str, **facts: Any) -> list[Row]:
        """Return the sparse rows of a section that have a speed-up, which means a correct result."""
        return [r for r in self.section(name, **facts) if "speedup" in r]

    def by_density(self, criterion: str) -> list[Row]:
        """Return the timed rows of the section "density" for one criterion, the dense ticket included."""
        return [r for r in self.timed("density") if r["criterion"] == criterion or r["density"] == 1]

    def ops(self) -> tuple[list[Row], list[Row]]:
        """Return the timed rows of single ops: of our kernels, and of PyTorch's sparse matrices."""
        kernels = [r for r in self.timed("op") if r["contender"].startswith("sparse cpu")]
        return kernels, [r for r in self.timed("op") if r not in kernels]

    def cases(self, name: str) -> list[str]:
        """Return the cases of a section, in order."""
        return list(dict.fromkeys(r["case"] for r in self.section(name)))

    def strongest(self, row: Row) -> Row:
        """Return the dense row that a sparse one is compared with."""
        return next(
            r for r in self.section(row["section"], case=row["case"], contender=row["speedup"]["over"])
        )

    def over_float32(self, row: Row) -> float:
        """Return the speed-up over the strongest dense float32 run; the sparse kernels are float32."""
        dense = [
            r["median"]
            for r in self.section(row["section"], case=row["case"])
            if r["contender"] in DENSE and "bfloat16" not in r["contender"] and "median" in r
        ]
        return float(min(dense) / row["median"])

    @property
    def by_round(self) -> bool:
        """Return whether ratios are medians of ratios by round; earlier suites stored medians alone."""
        return any("times" in r for r in self.rows)

    @property
    def remarks(self) -> list[str]:
        """Return what a reader must know: whether `small` or the suite differ from today's."""
        remarks = []
        measured = {f"{r['density']:.1%}" for r in self.timed("network", network="small")}
        if measured - {(shipped := f"{SMALL[0][1]:.1%}")}:
            remarks.append(
                f"`small` was an earlier ticket with {', '.join(sorted(measured))} of its weights;"
                f" the shipped one keeps {shipped}."
            )
        if not self.by_round:
            remarks.append("An earlier form of the suite made these results: each ratio is one of medians.")
        return remarks


def crossover(rows: list[Row]) -> float | None:
    """Return the density below which a sparse contender is faster than the strongest dense one.

    A line joins the measured points, density and speed-up both by their logarithms; the density is where it
    last crosses 1.

    Args:
        rows: Rows of one contender at several densities.

    Returns:
        The density, or None where the sparse contender wins, or loses, at all of them.
    """
    points = sorted((r["density"], r["speedup"]["ratio"]) for r in rows)
    for (a, slow), (b, fast) in zip(reversed(points[:-1]), reversed(points[1:]), strict=True):
        if slow >= 1 > fast:
            part = np.log(slow) / (np.log(slow) - np.log(fast))
            return float(np.exp(np.log(a) + part * (np.log(b) - np.log(a))))
    return None
