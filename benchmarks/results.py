"""Results of the suite as JSON lines: one row per contender, with everything that its time depends on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mirl_kernels.core import cpu
from mirl_sparse.files import write_whole

Row = dict[str, Any]
FOLDER = Path(__file__).parent / "results"


def now() -> str:
    """The time, as rows have it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def rows_of(result: Row, facts: dict[str, Row], **case: Any) -> Iterable[Row]:
    """The rows of one comparison (`mirl_sparse.performance.comparison.Comparison.result`): ``facts`` of its sparse contenders, ``case`` of all."""
    shared = {k: v for k, v in result.items() if k not in ("rows", "left_out", "strongest_dense")}
    shared |= case | {"date": now()}
    for name, row in result["rows"].items():
        yield {"contender": name, **row, **facts.get(name, {}), **shared}
    for name, reason in result["left_out"].items():
        yield {"contender": name, "left_out": reason, **facts.get(name, {}), **shared}


def subject(row: Row) -> tuple[Any, ...]:
    """What a row is about: those of one are measured together."""
    return tuple(
        row.get(key)
        for key in (("section", "case") if "case" in row else ("section", "network", "contender", "pixels"))
    )


def path(name: str, folder: Path = FOLDER) -> Path:
    """Where the results ``name`` ("full", "quick") of this machine's instruction set are."""
    return folder / cpu.isa() / f"{name}.jsonl"


def write(path: Path, rows: Iterable[Row]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Kept:
    """The rows of the results, those of wrong results too, which have no time; each is written at once, so that a crash loses none.
    What is measured again takes the place of what was."""

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
    """The shipped ticket, or a network's at a tenth, as timed by ``by``: "size" (of one square image, on all threads), "batch" (of
    64x64, on all threads) or "threads" (of one of 128x128)."""
    own = [r for r in rows if r.get("network") == network and "speedup" in r and r["criterion"] != "uneven"
           and (r["criterion"] == "small" or 0.1 <= r["density"] < 0.11)]  # fmt: skip
    most = max((r["threads"] for r in own), default=0)
    found = {}
    for r in own:
        batch, _, side, _ = r["shape"]
        place = {"size": side, "batch": batch, "threads": r["threads"]}
        if (
            (by == "batch" or batch == 1)
            and (by == "threads" or r["threads"] == most)
            and (by == "size" or side == _BASE[by])
        ):
            found[place[by]] = r
    return [found[value] for value in sorted(found)]
