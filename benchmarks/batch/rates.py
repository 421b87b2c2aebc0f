"""Compare how fast two raylets of one processor each are with two workers of this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.batch.clusters import raylets
from benchmarks.batch.photos import make_photos
from benchmarks.batch.processes import batch_command
from mirl_sparse.batch.report import Report
from mirl_sparse.batch.stores import Address, open_store

FLOOR = 0.9


def rate(target: Path) -> float:
    """Return photos per hour of a run, from the start of its first photo to the end of its last one."""
    rows = [
        r
        for t in Report(open_store(Address(str(target)))).tables(["seconds", "finished"])
        for r in t.to_pylist()
    ]
    ends = [row["finished"].timestamp() for row in rows]
    start = min(end - row["seconds"] for end, row in zip(ends, rows, strict=True))
    return len(rows) / (max(ends) - start) * 3600


def compare_rates(folder: Path, photos: int, sides: tuple[int, int], rounds: int = 3) -> float:
    """Run both in turns, print each rate, and return the best of Ray's by the best local one."""
    make_photos(folder / "in", photos, 0, sides)
    rates: dict[str, list[float]] = {"local": [], "ray": []}
    with raylets(2) as cluster:
        for number in range(rounds):
            for engine, more in (
                ("local", ["--workers", 2]),
                ("ray", ["--engine", "ray", "--ray-address", cluster.address]),
            ):
                target = folder / f"{engine}{number}"
                subprocess.run(batch_command(folder / "in", target, *more), check=True)
                rates[engine].append(rate(target))
                print(f"{engine}: {rates[engine][-1]:,.0f} photos per hour", flush=True)
    return max(rates["ray"]) / max(rates["local"])
