"""Report a run: its finished rounds as a table and as plots, and what the first and the last one restore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from torch import Tensor

from mirl_sparse.files import write_whole
from mirl_sparse.photos import write_image
from mirl_training.runs.figures import draw_examples, draw_plots
from mirl_training.runs.folder import RunFolder, read_log
from mirl_training.runs.progress import StepReport

_PLOTS, _EXAMPLES = "rounds.png", "examples.png"


def write_report(folder: Path, examples: Mapping[str, list[tuple[Tensor, Tensor]]] | None) -> None:
    """Write ``report.md`` into a run's folder, from its log and its finished rounds.

    Args:
        folder: The run's folder.
        examples: Pairs by task, (degraded, clean), each (1, 3, H, W) in [0, 1]. The first pair of each task
            is restored for a picture; None writes no pictures.
    """
    rounds = _finished_rounds(folder)
    lines = [f"# {folder.resolve().name}", "", *_table(rounds)]
    if examples is not None:
        write_whole(folder / _PLOTS, draw_plots(folder, rounds))
        write_image(folder / _EXAMPLES, draw_examples(folder, rounds, examples))
        lines += [
            "",
            f"![PSNR, seconds of a step and of an image, and the density of each layer, by round]({_PLOTS})",
            "",
            f"From the top {', '.join(examples)}: degraded, after the first round, after the last, clean.",
            "",
            f"![restored examples]({_EXAMPLES})",
        ]
    write_whole(folder / "report.md", "\n".join([*lines, ""]).encode())


def _table(rounds: Sequence[StepReport]) -> list[str]:
    tasks, dense = list(rounds[0]["psnr"]), rounds[0]
    timed = all("seconds_per_image" in r for r in rounds)
    lines = [
        "Each round prunes, rewinds and trains; density is what is left of the prunable weights, a step one"
        " of the optimizer, forward and backward (median; faster than that of the first round by), an image"
        " one of 256x256 pixels in the sparse engine, PSNR in dB on the held-back images.",
        "",
        f"| round | density | steps | loss | a step | faster | an image | {' | '.join(tasks)} |",
        "|---|---|---|---|---|---|---|" + "---|" * len(tasks),
    ]
    for r in rounds:
        scores = " | ".join(f"{r['psnr'][task]:.2f}" for task in tasks)
        image = f"{r['seconds_per_image'] * 1e3:.1f} ms" if timed else "-"
        faster = dense["seconds_per_step"] / r["seconds_per_step"]
        lines.append(
            f"| {r['round']} | {r['density']:.2%} | {r['step']} | {r['loss']:.4f}"
            f" | {r['seconds_per_step']:.3f} s | {faster:.2f}x | {image} | {scores} |"
        )
    return lines


def _finished_rounds(folder: Path) -> list[StepReport]:
    """Return the last line of the log of each finished round, with the median seconds of all its steps."""
    seconds: dict[int, list[float]] = {}
    last: dict[int, StepReport] = {}
    for report in read_log(folder):
        if "seconds_per_step" in report and RunFolder(folder).round(report["round"]).exists():
            seconds.setdefault(report["round"], []).append(report["seconds_per_step"])
            last[report["round"]] = report
    rounds = [last[index] for index in sorted(last)]
    for report in rounds:
        report["seconds_per_step"] = median(seconds[report["round"]])
    return rounds
