"""Read and write results as JSON lines: one row per contender, with everything that its time depends on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import cast

from benchmarks.suite.rows import Facts, Row, Section
from mirl_kernels.core import cpu
from mirl_sparse.files import write_whole
from mirl_sparse.performance.comparison import ComparisonResult
from mirl_sparse.performance.environment import processor

FOLDER = Path(__file__).parents[1] / "results"


def now() -> str:
    """Return the time in UTC as rows have it, to the minute."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def rows_of(
    result: ComparisonResult, facts: dict[str, Facts], section: Section, case: str, of_case: Facts
) -> Iterable[Row]:
    """Yield the rows of one comparison.

    Args:
        result: Result of the comparison.
        facts: Facts of the sparse contenders, by name.
        section: Section of the results.
        case: Name of the case.
        of_case: Facts that every row has.
    """
    conditions = result.to_dict()
    shared = {k: v for k, v in conditions.items() if k not in ("rows", "left_out", "strongest_dense")}
    shared |= {"section": section, "case": case, **of_case, "date": now()}
    for name, row in result.rows.items():
        yield cast(Row, {"contender": name, **row.to_dict(), **facts.get(name, {}), **shared})
    for name, reason in result.left_out.items():
        yield cast(Row, {"contender": name, "left_out": reason, **facts.get(name, {}), **shared})


def subject(row: Row) -> tuple[object, ...]:
    """Return what a row is about: rows with the same subject are measured together."""
    if "case" in row:
        return row["section"], row["case"]
    return row["section"], row.get("network"), row.get("contender"), row.get("pixels")


def folder_name(isa: str, processor: str) -> str:
    """Return the name of the folder of a machine's results, such as "avx512-intel-r-xeon-r-processor"."""
    return f"{isa}-{'-'.join(re.findall('[a-z0-9]+', processor.lower()))}"


def path(name: str, folder: Path = FOLDER) -> Path:
    """Return the path of the results ``name`` ("full" or "quick") of machines like this one."""
    return folder / folder_name(cpu.isa(), processor()) / f"{name}.jsonl"


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, all or nothing."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


class ResultStore:
    """Collect rows, and write each at once, so that a crash loses none.

    Rows of wrong results are stored too; they have no time. Rows measured again replace the old ones.

    Attributes:
        rows: All rows.

    Args:
        path: File to write; None to write nothing.
        rows: Rows that are there already.
    """

    def __init__(self, path: Path | None, rows: list[Row]) -> None:
        self._path, self.rows = path, rows
        self._old = {subject(row) for row in rows}  # measured by an earlier run

    def __call__(self, row: Row) -> None:
        about = subject(row)
        same = [i for i, r in enumerate(self.rows) if subject(r) == about]
        place = same[-1] + 1 if same else len(self.rows)
        if about in self._old:
            self._old.remove(about)
            place = same[0]
            self.rows = [r for r in self.rows if subject(r) != about]
        self.rows.insert(place, row)
        if self._path:
            write(self._path, self.rows)


_BASE = {"batch": 64, "threads": 128}  # the side of the images that batches and threads are swept with


def sweep(rows: Iterable[Row], network: str, by: str) -> list[Row]:
    """Return the rows of a network's sweep, in rising order.

    Args:
        rows: Rows of the results.
        network: "small" for the shipped ticket, "full-size" for the layer-wise one at a tenth.
        by: "size" (one square image, all threads), "batch" (images of 64x64, all threads) or "threads" (one
            image of 128x128).
    """
    timed = [
        r
        for r in rows
        if r.get("network") == network
        and "speedup" in r
        and r["criterion"] != "uneven"
        and (r["criterion"] == "small" or 0.1 <= r["density"] < 0.11)
    ]
    most = max((r["threads"] for r in timed), default=0)
    swept = {}
    for r in timed:
        batch, _, side, _ = r["shape"]
        place = {"size": side, "batch": batch, "threads": r["threads"]}
        if (
            (by == "batch" or batch == 1)
            and (by == "threads" or r["threads"] == most)
            and (by == "size" or side == _BASE[by])
        ):
            swept[place[by]] = r
    return [swept[value] for value in sorted(swept)]
