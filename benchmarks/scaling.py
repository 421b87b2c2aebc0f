"""Compute, from what was measured here, what larger servers would take and what a million photos would cost.

For each way to run a network, a model of few parameters is fitted to the measured times:

- by pixels: seconds = a + b * pixels (least squares on relative errors over the measured sizes);
- by threads: Amdahl's law, from the times of one thread and of all threads;
- by bandwidth: no photo takes less than its bytes at the server's memory bandwidth.

The model takes a core of a server to be as fast as one of this machine. It counts the bytes of the sparse network. The dense network
moves more, but the model never lets it wait for memory. Photos in bulk are restored by one process per core.
"""

from __future__ import annotations

import numpy as np
from results import Row, sweep
from scipy.optimize import nnls

SERVERS = (
    (8, 80e9),
    (32, 200e9),
    (96, 460e9),
)  # cores, bytes a second: desktop, one socket of 8 and of 12 channels
PHOTO, PHOTOS = 2_000_000, 1_000_000


def _seconds(row: Row, way: str) -> float:
    """Of the sparse network of a row, or of the strongest dense run that it was compared with."""
    return float(row["median"] * (row["speedup"]["ratio"] if way == "dense" else 1))


def fit(rows: list[Row], network: str) -> dict[str, Row]:
    """Per way to run a network: ``fixed`` seconds and ``per_pixel``, on one thread; the ``serial`` part; ``bytes`` per pixel; and how
    far, at most, the line is off the measured points (``off``)."""
    sizes, threads = sweep(rows, network, "size"), sweep(rows, network, "threads")
    found = {}
    for way in ("dense", "sparse"):
        x = np.array([row["shape"][2] ** 2 for row in sizes], float)
        y = np.array([_seconds(row, way) for row in sizes])
        matrix = np.stack([np.ones_like(x), x], 1) / y[:, None]
        fixed, per_pixel = nnls(matrix, np.ones_like(y))[0].tolist()
        by_threads = {row["threads"]: _seconds(row, way) for row in threads}
        most = max(by_threads)
        alone = by_threads[1] / by_threads[most]
        serial = min(1.0, max(0.0, (most / alone - 1) / (most - 1))) if most > 1 else 0.0
        bytes_per_pixel = sizes[-1]["bytes"] / x[-1] if way == "sparse" else 0.0
        off = float(np.abs((fixed + per_pixel * x) / y - 1).max())
        found[way] = {"fixed": fixed * alone, "per_pixel": per_pixel * alone, "serial": serial, "bytes": bytes_per_pixel,
                      "off": off}  # fmt: skip
    return found


def latency(model: Row, pixels: float, cores: int, bandwidth: float) -> float:
    """Seconds for one photo on all cores."""
    alone = model["fixed"] + model["per_pixel"] * pixels
    return float(
        max(alone * (model["serial"] + (1 - model["serial"]) / cores), model["bytes"] * pixels / bandwidth)
    )


def core_hours(model: Row, pixels: float, photos: float, cores: int, bandwidth: float) -> float:
    """Of many photos, each on one core."""
    alone = model["fixed"] + model["per_pixel"] * pixels
    seconds = photos * max(alone / cores, model["bytes"] * pixels / bandwidth)
    return float(seconds * cores / 3600)


def section(rows: list[Row]) -> list[str]:
    """The report's part."""
    lines = ["## Beyond this machine, on paper", "", *__doc__.split("\n\n", 1)[1].strip().splitlines(), ""]
    head = "| network | way | fitted on one thread | serial part | off by at most | " + " | ".join(
        f"{c} cores, {b / 1e9:.0f} GB/s: 2 Mpx" for c, b in SERVERS
    )
    lines += [head + f" | {PHOTOS:,} photos of 2 Mpx, core-hours |", "|---" * (6 + len(SERVERS)) + "|"]
    for network in ("small", "full-size"):
        for way, m in fit(rows, network).items():
            times = " | ".join(f"{latency(m, PHOTO, c, b):.2f} s" for c, b in SERVERS)
            hours = " / ".join(f"{core_hours(m, PHOTO, PHOTOS, c, b):,.0f}" for c, b in SERVERS)
            lines.append(
                f"| {network} | {way} | {m['fixed'] * 1e3:.1f} ms + {m['per_pixel'] * 1e6:.2f} s per Mpx | {m['serial']:.0%}"
                f" | {m['off']:.0%} | {times} | {hours} |"
            )
    return [*lines, ""]


def findings(rows: list[Row]) -> list[str]:
    """Return the line about a million photos for `docs/performance.md`."""
    cores, bandwidth = SERVERS[1]
    hours = {way: core_hours(m, PHOTO, PHOTOS, cores, bandwidth) for way, m in fit(rows, "full-size").items()}
    most = max(row["shape"][2] for row in sweep(rows, "full-size", "size"))
    return [
        f"one million photos of 2 megapixels, computed, not measured: {hours['dense']:,.0f} core-hours dense,"
        f" {hours['sparse']:,.0f} sparse (full-size, 10.7% layerwise; extrapolated from images up to {most}x{most})"
    ]
