"""Measure how much of a processor the driver takes for each photo: it bounds how many workers it can feed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.batch.clusters import raylets
from benchmarks.batch.photos import make_photos

_CODE = """
import resource, sys
from mirl_sparse.cli.app import main
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, file=open(sys.argv[3] + ".seconds", "w"))
"""


def driver_seconds(folder: Path, photos: int) -> dict[str, float]:
    """Return the processor time per photo of the driver of each engine; photos are tiny, workers two."""
    few = photos // 10
    make_photos(folder / "few", few, 0, (8, 8))
    make_photos(folder / "many", photos, 0, (8, 8))
    with raylets(2) as cluster:
        engines = {"local": ["--workers", "2"], "ray": ["--engine", "ray", "--ray-address", cluster.address]}
        return {
            engine: (_seconds(folder / "many", engine, more) - _seconds(folder / "few", engine, more))
            / (photos - few)
            for engine, more in engines.items()
        }


def _seconds(source: Path, engine: str, more: list[str]) -> float:
    target = source.with_name(f"{source.name}-{engine}")
    command = [sys.executable, "-c", _CODE, "batch", str(source), str(target), "--quiet", *more]
    subprocess.run(command, check=True)
    return float(Path(f"{target}.seconds").read_text())
