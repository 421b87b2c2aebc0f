"""The report of a run: its finished rounds as a table and as plots, and what the first and the last one restore."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from mirl_sparse.files import write_whole
from mirl_sparse.photos.images import write_image
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.tickets.load import load

Rounds = list[dict[str, Any]]
Pairs = Mapping[str, list[tuple[Tensor, Tensor]]]  # per task (degraded, clean), each (1, 3, H, W)
_GAP = 4  # white pixels between the images of a row


def write_report(folder: Path, examples: Pairs | None) -> None:
    """Write ``report.md`` into a run's folder, from its log and its finished rounds; with ``examples`` its pictures too, for which
    the first of each task's pairs is restored."""
    rounds = _rounds(folder)
    tasks = list(rounds[0]["psnr"])
    dense = rounds[0]
    timed = all("seconds_per_image" in r for r in rounds)
    lines = [
        f"# {folder.resolve().name}",
        "",
        "Each round prunes, rewinds and trains; density is what is left of the prunable weights, a step one of the optimizer,"
        " forward and backward (median; faster than that of the first round by), an image one of 256x256 pixels in the sparse"
        " engine, PSNR in dB on the held-back images.",
        "",
        f"| round | density | steps | loss | a step | faster | an image | {' | '.join(tasks)} |",
        "|---|---|---|---|---|---|---|" + "---|" * len(tasks),
    ]
    for r in rounds:
        scores = " | ".join(f"{r['psnr'][task]:.2f}" for task in tasks)
        image = f"{r['seconds_per_image'] * 1e3:.1f} ms" if timed else "-"
        lines.append(
            f"| {r['round']} | {r['density']:.2%} | {r['step']} | {r['loss']:.4f} | {r['seconds']:.3f} s"
            f" | {dense['seconds'] / r['seconds']:.2f}x | {image} | {scores} |"
        )
    if examples is not None:
        write_whole(folder / "rounds.png", _plots(folder, rounds, timed))
        write_image(folder / "examples.png", _examples(folder, rounds, examples))
        lines += [
            "",
            "![PSNR, seconds of a step and of an image, and the density of each layer, by round](rounds.png)",
            "",
            f"From the top {', '.join(examples)}: degraded, after the first round, after the last, clean.",
            "",
            "![restored examples](examples.png)",
        ]
    write_whole(folder / "report.md", "\n".join([*lines, ""]).encode())


def logged(folder: Path) -> Iterator[dict[str, Any]]:
    """What a run told of each validation, in order; a line that a kill cut short is no line."""
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def _rounds(folder: Path) -> Rounds:
    """Of each finished round its last line of the log, and the median seconds of its steps."""
    seconds: dict[int, list[float]] = {}
    last: dict[int, dict[str, Any]] = {}
    for entry in logged(folder):
        if "seconds_per_step" in entry and (folder / f"round_{entry['round']:02d}").exists():
            seconds.setdefault(entry["round"], []).append(entry["seconds_per_step"])
            last[entry["round"]] = entry
    return [last[i] | {"seconds": median(seconds[i])} for i in sorted(last)]


def _plots(folder: Path, rounds: Rounds, timed: bool) -> bytes:
    from matplotlib.figure import Figure  # takes half a second to import, which few commands should pay

    figure = Figure(figsize=(12, 9), layout="constrained")
    grid = figure.add_gridspec(3 if timed else 2, 2)
    densities = [100 * r["density"] for r in rounds]

    def against_density(row: int, what: str) -> Any:
        axes = figure.add_subplot(grid[row, 0])
        axes.set(xlabel="density, % of the prunable weights", ylabel=what, xlim=(105, 0))
        axes.grid(alpha=0.3)
        return axes

    axes = against_density(0, "PSNR, dB above the first round's")
    for task, dense in rounds[0]["psnr"].items():
        change = [r["psnr"][task] - dense for r in rounds]
        axes.plot(densities, change, marker="o", label=f"{task} ({dense:.1f} dB)")
    axes.legend(fontsize="small")
    times = [("seconds of a step (median)", "seconds")]
    if timed:
        times.append(("seconds of an image (median)", "seconds_per_image"))
    for row, (what, key) in enumerate(times, 1):
        axes = against_density(row, what)
        axes.plot(densities, [r[key] for r in rounds], marker="o")
        axes.set_ylim(0, None)
    _layers(figure, figure.add_subplot(grid[:, 1]), folder, rounds)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _layers(figure: Any, axes: Any, folder: Path, rounds: Rounds) -> None:
    masks = [load_file(folder / f"round_{r['round']:02d}/mask.safetensors") for r in rounds]
    order = list(load_file(folder / "start.safetensors"))
    names = sorted(masks[0], key=order.index)
    left = np.array([[100 * float(mask[n].float().mean()) for mask in masks] for n in names])
    image = axes.imshow(left, aspect="auto", vmin=0, vmax=100, interpolation="nearest")
    axes.set_xticks(range(len(rounds)), [f"{r['density']:.1%}" for r in rounds])
    axes.set_yticks(
        range(len(names)), [n.removesuffix(".weight") for n in names], fontsize=max(2, min(6, 500 / len(names)))
    )
    axes.set_xlabel("density of the round")
    figure.colorbar(image, label="% of the layer's weights left")


def _examples(folder: Path, rounds: Rounds, examples: Pairs) -> NDArray[np.uint8]:
    ends = [
        SparseRestorer(load(folder / f"round_{r['round']:02d}/weights.safetensors")) for r in (rounds[0], rounds[-1])
    ]
    rows = []
    for pairs in examples.values():
        degraded, clean = pairs[0]
        images = (_pixels(x) for x in (degraded, *(restorer(degraded) for restorer in ends), clean))
        rows.append(np.concatenate([_framed(image) for image in images], 1))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows])


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    return (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _framed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(image, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
