"""Draw the plots of one machine's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.suite.machine_results import MachineResults, crossover
from mirl_sparse.files import write_whole
from mirl_sparse.performance.peers import DENSE, STOCK


def save_plots(measured: MachineResults, folder: Path) -> None:
    """Write every plot whose sections were measured as a PNG file."""
    for name, (draw, sections) in _PLOTS.items():
        if measured.has_sections(*sections):
            columns = len(measured.section("profile")) if draw is _stages else 1
            figure = Figure(figsize=(6 * columns, 4.5), layout="constrained")
            draw(measured, *np.atleast_1d(figure.subplots(1, columns)))
            _save(figure, folder / f"{name}.png")


def _save(figure: Figure, path: Path) -> None:
    write_whole(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def _density(measured: MachineResults, axes: Any) -> None:
    for criterion in ("layerwise", "uneven"):
        rows = sorted(measured.by_density(criterion), key=lambda r: r["density"])
        x = [100 * r["density"] for r in rows]
        axes.plot(x, [1e3 * r["median"] for r in rows], "o-", label=f"sparse, {criterion} (20% to 80%)")
        axes.fill_between(x, *([1e3 * r[k] for r in rows] for k in ("p20", "p80")), alpha=0.2)
        if density := crossover(rows):
            axes.axvline(100 * density, color="grey", linestyle=":")
    for r in measured.section("density"):
        if r["contender"] in DENSE and "median" in r and r["contender"] != STOCK:
            color = f"C{2 + list(DENSE).index(r['contender'])}"
            axes.axhline(1e3 * r["median"], linewidth=0.8, linestyle="--", color=color, label=r["contender"])
    axes.set(xlabel="weights kept, %", ylabel="ms, full-size network at 128x128", xscale="log", yscale="log")
    axes.legend(fontsize=7)


def _roofline(measured: MachineResults, axes: Any) -> None:
    profiles = measured.section("profile")
    flops, moved = (max(r[peak] for r in profiles) for peak in ("gflops_peak", "gbytes_peak"))
    x = np.logspace(-2, 3, 100)
    axes.plot(x, np.minimum(flops, x * moved), "k-", label="measured peaks")
    rows = [r for r in measured.timed("op") if "macs" in r]
    for i, op in enumerate(dict.fromkeys(r["op"] for r in rows)):
        of_op = [r for r in rows if r["op"] == op]
        intensities = [2 * r["macs"] / r["bytes"] for r in of_op]
        speeds = [2e-9 * r["macs"] / r["median"] for r in of_op]
        axes.plot(intensities, speeds, "o", label=op, color=f"C{i}", markersize=4)
    axes.set(
        xlabel="operations per byte that must move",
        ylabel="GFLOP/s by surviving weights",
        xscale="log",
        yscale="log",
    )
    axes.legend(fontsize=7)


def _stages(measured: MachineResults, *subplots: Any) -> None:
    for axes, row in zip(subplots, measured.section("profile"), strict=True):
        names = row["dense_stages"] | row["sparse_stages"]
        colours = dict(zip(names, colormaps["turbo"](np.linspace(0, 1, len(names))), strict=True))
        for column, stages in enumerate((row["dense_stages"], row["sparse_stages"])):
            bottom = 0.0
            for stage, seconds in stages.items():
                label = None if column else stage
                axes.bar(column, 1e3 * seconds, bottom=bottom, color=colours[stage], label=label)
                bottom += 1e3 * seconds
        axes.set_xticks((0, 1), ("dense channels_last", "sparse"))
        axes.set(ylabel="ms", title=f"{row['network']}, 256x256")
    subplots[-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))


def _memory(measured: MachineResults, axes: Any) -> None:
    rows = [r for r in measured.section("memory") if "peak_bytes" in r]
    for network, contender in dict.fromkeys((r["network"], r["contender"]) for r in rows):
        line = [r for r in rows if (r["network"], r["contender"]) == (network, contender)]
        megapixels = [r["pixels"] / 1e6 for r in line]
        axes.plot(megapixels, [r["peak_bytes"] / 1e9 for r in line], "o-", label=f"{network}, {contender}")
    axes.set(xlabel="megapixels", ylabel="GB, peak of the process", xscale="log", yscale="log")
    axes.legend(fontsize=7)


# By name of the file: what draws it, and the sections of the results that it needs.
_PLOTS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "density": (_density, ("density",)),
    "roofline": (_roofline, ("op", "profile")),
    "stages": (_stages, ("profile",)),
    "memory": (_memory, ("size", "batch", "threads", "memory")),
}
