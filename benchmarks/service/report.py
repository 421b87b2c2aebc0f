"""Judge and write what the load test measured."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.service.load import Answer

LARGEST_RATIO = 3.0  # of the 99th percentile to the median
LARGEST_GROWTH = 1.05  # of memory, from the first third to the end


@dataclass(frozen=True)
class Result:
    """Hold what was measured.

    Attributes:
        date: Of the measurement.
        processor: Name of the processor.
        processors: How many the service and its clients shared.
        capacity: Photos per second, with as many clients as keep it busy.
        offered: Photos per second that were sent.
        seconds: How long.
        sent: Photos sent.
        accepted: Photos restored.
        refused: Photos refused with status 429.
        failures: All others.
        faults: What was wrong with these, the most frequent first.
        median: Seconds of accepted photos, from when they were due to the end of the answer.
        p99: The 99th percentile of the same.
        longest: The longest of the same.
        memory_before: Bytes before the load.
        memory_first_third: Largest number of bytes in the first third.
        memory_last_third: Largest number of bytes in the last third.
        memory_after: Bytes after the load.
    """

    date: str
    processor: str
    processors: int
    capacity: float
    offered: float
    seconds: float
    sent: int
    accepted: int
    refused: int
    failures: int
    faults: dict[str, int]
    median: float
    p99: float
    longest: float
    memory_before: float
    memory_first_third: float
    memory_last_third: float
    memory_after: float

    def broken_floors(self) -> list[str]:
        """Return in words which promises were not kept."""
        ratio, growth = self.p99 / self.median, self.memory_last_third / self.memory_first_third
        checks = {
            f"{self.failures} photos failed": self.failures > 0,
            "no photo was accepted": self.accepted == 0,
            "no photo was refused, so this was no overload": self.refused == 0,
            f"the 99th percentile is {ratio:.1f} times the median": not ratio <= LARGEST_RATIO,
            f"memory grew to {growth:.2f} of the first third": not growth <= LARGEST_GROWTH,
        }
        return [text for text, is_broken in checks.items() if is_broken]


def summarize(
    capacity: float,
    offered: float,
    seconds: float,
    answers: Sequence[Answer],
    memory: Sequence[tuple[float, float]],
    memory_before: float,
    memory_after: float,
) -> Result:
    """Return the figures of a measurement.

    Args:
        capacity: Photos per second that the service can do.
        offered: Photos per second that were sent.
        seconds: How long.
        answers: All of them.
        memory: Seconds since the start, and bytes.
        memory_before: Bytes before the load.
        memory_after: Bytes after the load.
    """
    times = [answer.seconds for answer in answers if answer.status == 200] or [float("nan")]
    refused = sum(answer.status == 429 for answer in answers)
    faults = Counter(answer.fault for answer in answers if answer.fault)
    thirds = [
        max((size for at, size in memory if low <= 3 * at / seconds < low + 1), default=float("nan"))
        for low in (0, 2)
    ]
    return Result(
        date.today().isoformat(),
        _processor(),
        len(os.sched_getaffinity(0)),
        capacity,
        offered,
        seconds,
        len(answers),
        sum(answer.status == 200 for answer in answers),
        refused,
        sum(faults.values()),
        dict(faults.most_common(5)),
        float(np.median(times)),
        float(np.percentile(times, 99)),
        max(times),
        memory_before,
        thirds[0],
        thirds[1],
        memory_after,
    )


def write(result: Result, folder: Path) -> Path:
    """Write the figures as JSON and as a table, and return the table's file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "service.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    (folder / "service.md").write_text(table(result))
    return folder / "service.md"


def table(r: Result) -> str:
    """Return the figures as a table in Markdown."""
    megabytes = [
        f"{size / 1e6:.0f} MB"
        for size in (r.memory_before, r.memory_first_third, r.memory_last_third, r.memory_after)
    ]
    rows = {
        "capacity": f"{r.capacity:.1f} photos/s",
        "offered": f"{r.offered:.1f} photos/s for {r.seconds:.0f} s, {r.sent} in all",
        "accepted, and answered": str(r.accepted),
        "refused (429)": str(r.refused),
        "failed": str(r.failures),
        "time of accepted": f"median {r.median:.2f} s, 99% within {r.p99:.2f} s, all {r.longest:.2f} s",
        "99th percentile over median": f"{r.p99 / r.median:.2f}",
        "memory": f"{megabytes[0]} before, {megabytes[3]} after",
        "largest memory": f"{megabytes[1]} in the first third, {megabytes[2]} in the last",
    }
    head = f"`mirl-sparse serve` and its clients on {r.processors} processors ({r.processor}), {r.date}.\n\n"
    return head + "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
