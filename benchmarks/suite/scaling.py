"""Compute from measured times what larger servers would take and what a million photos would cost.

For each way to run a network, a model of few parameters is fitted to the measured times:

- by pixels: seconds = a + b * pixels (least squares on relative errors over the measured sizes);
- by threads: Amdahl's law, from the times of one thread and of all threads;
- by bandwidth: no photo takes less than its bytes at the server's memory bandwidth.

The model takes a core of a server to be as fast as one of this machine. It counts the bytes of the sparse
network. The dense network moves more, but the model never lets it wait for memory. Photos in bulk are
restored by one process per core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from benchmarks.suite.results import sweep
from benchmarks.suite.rows import Row

# Cores and bytes a second: a desktop, one socket of 8 memory channels, and one of 12.
SERVERS = ((8, 80e9), (32, 200e9), (96, 460e9))
PHOTO, PHOTOS = 2_000_000, 1_000_000


@dataclass(frozen=True)
class Model:
    """Hold the model of one way to run a network.

    Attributes:
        fixed: Seconds for an image without pixels, on one thread.
        per_pixel: Seconds per pixel, on one thread.
        serial: Fraction of the time that more threads do not shorten.
        bytes_per_pixel: Bytes that must move.
        off: Largest relative distance of a measured point from the line.
    """

    fixed: float
    per_pixel: float
    serial: float
    bytes_per_pixel: float
    off: float

    def alone(self, pixels: float) -> float:
        """Return the seconds for one photo on one thread."""
        return self.fixed + self.per_pixel * pixels


def _seconds(row: Row, way: str) -> float:
    """Return the seconds of a row's sparse network, or of the strongest dense run beside it."""
    return float(row["median"] * (row["speedup"]["ratio"] if way == "dense" else 1))


def fit(rows: list[Row], network: str) -> dict[str, Model]:
    """Return the models that fit a network's measured times, for "dense" and "sparse"."""
    sizes, threads = sweep(rows, network, "size"), sweep(rows, network, "threads")
    models = {}
    for way in ("dense", "sparse"):
        x = np.array([row["shape"][2] ** 2 for row in sizes], float)
        y = np.array([_seconds(row, way) for row in sizes])
        matrix = np.stack([np.ones_like(x), x], 1) / y[:, None]
        fixed, per_pixel = nnls(matrix, np.ones_like(y))[0].tolist()
        by_threads = {row["threads"]: _seconds(row, way) for row in threads}
        most = max(by_threads)
        alone = by_threads[1] / by_threads[most]
        serial = min(1.0, max(0.0, (most / alone - 1) / (most - 1))) if most > 1 else 0.0
        bytes_per_pixel = float(sizes[-1]["bytes"] / x[-1]) if way == "sparse" else 0.0
        off = float(np.abs((fixed + per_pixel * x) / y - 1).max())
        models[way] = Model(fixed * alone, per_pixel * alone, serial, bytes_per_pixel, off)
    return models


def latency(model: Model, pixels: float, cores: int, bandwidth: float) -> float:
    """Return the seconds for one photo on all cores."""
    computing = model.alone(pixels) * (model.serial + (1 - model.serial) / cores)
    return max(computing, model.bytes_per_pixel * pixels / bandwidth)


def core_hours(model: Model, pixels: float, photos: float, cores: int, bandwidth: float) -> float:
    """Return the core-hours for many photos, each on one core."""
    seconds = photos * max(model.alone(pixels) / cores, model.bytes_per_pixel * pixels / bandwidth)
    return seconds * cores / 3600


def section(rows: list[Row]) -> list[str]:
    """Return this part of the report, in lines of Markdown."""
    lines = ["## Beyond this machine, on paper", "", *__doc__.split("\n\n", 1)[1].strip().splitlines(), ""]
    head = "| network | way | fitted on one thread | serial part | off by at most | " + " | ".join(
        f"{c} cores, {b / 1e9:.0f} GB/s: 2 Mpx" for c, b in SERVERS
    )
    lines += [head + f" | {PHOTOS:,} photos of 2 Mpx, core-hours |", "|---" * (6 + len(SERVERS)) + "|"]
    for network in ("small", "full-size"):
        for way, m in fit(rows, network).items():
            times = " | ".join(f"{latency(m, PHOTO, c, b):.2f} s" for c, b in SERVERS)
            hours = " / ".join(f"{core_hours(m, PHOTO, PHOTOS, c, b):,.0f}" for c, b in SERVERS)
            fitted = f"{m.fixed * 1e3:.1f} ms + {m.per_pixel * 1e6:.2f} s per Mpx"
            lines.append(
                f"| {network} | {way} | {fitted} | {m.serial:.0%} | {m.off:.0%} | {times} | {hours} |"
            )
    return [*lines, ""]


def findings(rows: list[Row]) -> list[str]:
    """Return the line about a million photos for `docs/performance.md`."""
    cores, bandwidth = SERVERS[1]
    hours = {way: core_hours(m, PHOTO, PHOTOS, cores, bandwidth) for way, m in fit(rows, "full-size").items()}
    most = max(row["shape"][2] for row in sweep(rows, "full-size", "size"))
    return [
        f"one million photos of 2 megapixels, computed, not measured: {hours['dense']:,.0f} core-hours dense,"
        f" {hours['sparse']:,.0f} sparse"
        f" (full-size, 10.7% layerwise; extrapolated from images up to {most}x{most})"
    ]
