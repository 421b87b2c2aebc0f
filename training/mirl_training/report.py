"""The report of a run: its finished rounds as a table, and what a step costs against density as a plot."""

from __future__ import annotations

import io
import json
from pathlib import Path
from statistics import median
from typing import Any

from mirl_sparse.files import write_whole


def write_report(folder: Path) -> None:
    """Write ``report.md`` and ``cost.png`` of a run's folder, from its log."""
    rounds = _rounds(folder)
    tasks = list(rounds[0]["psnr"]) if rounds else []
    dense = rounds[0]["seconds"] if rounds else 0.0
    lines = [
        f"# {folder.resolve().name}",
        "",
        "Each round prunes, rewinds and trains; density is what is left of the prunable weights, a step one of the optimizer,"
        " forward and backward (median; faster than that of the first round by), PSNR in dB on the held-back images.",
        "",
        f"| round | density | steps | loss | a step | faster | {' | '.join(tasks)} |",
        "|---|---|---|---|---|---|" + "---|" * len(tasks),
    ]
    for r in rounds:
        scores = " | ".join(f"{r['psnr'][task]:.2f}" for task in tasks)
        lines.append(
            f"| {r['round']} | {r['density']:.2%} | {r['steps']} | {r['loss']:.4f} | {r['seconds']:.3f} s"
            f" | {dense / r['seconds']:.2f}x | {scores} |"
        )
    write_whole(folder / "cost.png", _plot(rounds))
    lines += ["", "![seconds of a step against density](cost.png)", ""]
    write_whole(folder / "report.md", "\n".join(lines).encode())


def _rounds(folder: Path) -> list[dict[str, Any]]:
    """Of each finished round its last line of the log, and the median seconds of its steps; a line that a kill cut short is
    no line."""
    seconds: dict[int, list[float]] = {}
    last: dict[int, dict[str, Any]] = {}
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "seconds_per_step" in entry and (folder / f"round_{entry['round']:02d}").exists():
            seconds.setdefault(entry["round"], []).append(entry["seconds_per_step"])
            last[entry["round"]] = entry
    return [last[i] | {"seconds": median(seconds[i])} for i in sorted(last)]


def _plot(rounds: list[dict[str, Any]]) -> bytes:
    from matplotlib.figure import Figure  # takes half a second to import, which few commands should pay

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([100 * r["density"] for r in rounds], [r["seconds"] for r in rounds], marker="o")
    axes.set(
        xlabel="density, % of the prunable weights", ylabel="seconds per step (median)", ylim=(0, None), xlim=(105, 0)
    )
    axes.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()
