"""Sum up the report of a target: how many photos, how fast, which errors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mirl_sparse.batch.history import last_rows
from mirl_sparse.batch.keys import key_number
from mirl_sparse.batch.report import Report, Status, read_report
from mirl_sparse.batch.stores import Store
from mirl_sparse.errors import UserError
from mirl_sparse.photos.photo import printable_path

_COLUMNS = ("key", "status", "error", "warning", "seconds", "node", "run", "finished")
_MAX_KINDS = 1000  # of errors; more are summed up
_EXAMPLES = 3
_HOUR = 3600.0
_QUANTITY = re.compile(r"\d[\d.,x]*(?= (?:pixels|frames|bytes|MB|s)\b)")


@dataclass
class ErrorKind:
    """Count photos that failed alike.

    Attributes:
        error: What was said, without the name of the photo, and with # for sizes.
        count: How many photos.
        examples: The keys of some of them.
    """

    error: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class NodeRate:
    """Say how fast a machine was.

    Attributes:
        node: What the report calls it.
        photos: How many photos it tried, the last try of each.
        per_hour: Photos per hour, from the start of its first photo to the end of its last one, over all
            runs.
    """

    node: str
    photos: int
    per_hour: float


@dataclass
class BatchStatus:
    """Sum up a report.

    Attributes:
        counts: Photos by status.
        warnings: How many results have a warning.
        nodes: The machines.
        errors: What went wrong, the most frequent first.
        failed: Keys of all photos that have no result, if they were asked for.
    """

    counts: dict[str, int]
    warnings: int
    nodes: list[NodeRate]
    errors: list[ErrorKind]
    failed: list[str]


def read_status(store: Store, lists_failed: bool = False) -> BatchStatus:
    """Return the sum of a target's report; the last row of each photo counts.

    Args:
        store: The target.
        lists_failed: Whether all keys of photos without a result are listed.

    Raises:
        UserError: There is no report, or it is damaged.
    """

    def read(report: Report) -> BatchStatus:
        if not report:
            raise UserError(
                f"{printable_path(store.place)}: holds no report; expected a target of mirl-sparse batch"
            )
        return _sum_up(report, lists_failed)

    status: BatchStatus = read_report(store, read)
    return status


def _sum_up(report: Report, lists_failed: bool) -> BatchStatus:
    counts: Counter[str] = Counter()
    errors: dict[str, ErrorKind] = {}
    spans: dict[tuple[str, str], list[float]] = {}  # by node and run: photos, start, end
    warned, failed = 0, list[str]()
    for row in _final_rows(report):
        counts[row["status"]] += 1
        warned += bool(row["warning"])
        if row["node"]:
            _extend(spans, row)
        if row["status"] in (Status.FAILED, Status.UNREACHABLE):
            _count(errors, row)
            if lists_failed:
                failed.append(row["key"])
    kinds = sorted(errors.values(), key=lambda kind: -kind.count)
    return BatchStatus(dict(counts), warned, _rates(spans), kinds, failed)


def _final_rows(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the last row of each key; keys are kept as hashes only."""
    numbers = [
        np.array([key_number(key) for key in table.column("key").to_pylist()], np.uint64)
        for table in report.tables(["key"])
    ]
    is_last = np.zeros(sum(map(len, numbers)), bool)
    is_last[last_rows(np.concatenate(numbers))] = True
    start = 0
    for table in report.tables(_COLUMNS):
        yield from table.filter(is_last[start : start + len(table)]).to_pylist()
        start += len(table)


def _extend(spans: dict[tuple[str, str], list[float]], row: dict[str, Any]) -> None:
    end = row["finished"].timestamp()
    span = spans.setdefault((row["node"], row["run"]), [0, float("inf"), 0.0])
    span[:] = span[0] + 1, min(span[1], end - row["seconds"]), max(span[2], end)


def _rates(spans: dict[tuple[str, str], list[float]]) -> list[NodeRate]:
    rates = []
    for node in sorted({node for node, _ in spans}):
        own = [span for (name, _), span in spans.items() if name == node]
        photos, seconds = sum(span[0] for span in own), sum(span[2] - span[1] for span in own)
        rates.append(NodeRate(node, int(photos), photos / max(seconds, 1e-3) * _HOUR))
    return rates


def _count(errors: dict[str, ErrorKind], row: dict[str, Any]) -> None:
    name = printable_path(row["key"])
    error = row["error"].removeprefix(f"{name}: ").replace(name, "(the photo)")
    kind = _QUANTITY.sub("#", error)
    if kind not in errors and len(errors) >= _MAX_KINDS:
        kind = "(other errors)"
    entry = errors.setdefault(kind, ErrorKind(kind))
    entry.count += 1
    if len(entry.examples) < _EXAMPLES:
        entry.examples.append(row["key"])
