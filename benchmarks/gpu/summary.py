"""Write what the stages found as one page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import FigureLog
from benchmarks.gpu.stages import STAGES
from mirl_sparse.files import write_whole

REHEARSAL = "rehearsal"  # the name of the GPU where there is none
_UNSHOWN = "in_key", "rows"  # facts for other programs
_SHOWN = 60  # figures of a stage
_MEASURED = "Every figure below was measured, but those named predicted."


def write_summary(out: Path, figures: FigureLog, key: str) -> None:
    """Write ``summary.md``: the figures of each stage's last run, and how it ended.

    Args:
        out: Folder of the results.
        figures: The lines of all runs.
        key: What the results must be valid for; those of other code or of another machine are left out.
    """
    lines = list(figures.lines())
    rehearsed = any(
        line["key"] in (key, key.split("-")[0]) and line.get("value") == REHEARSAL for line in lines
    )
    what = "Rehearsed in Triton's interpreter: no time means anything." if rehearsed else _MEASURED
    parts = ["# Measured on a GPU", "", what, ""]
    for stage in STAGES:
        keys = {key, key.split("-")[0]} if stage.name == "machine" else {key}
        parts += _stage(
            stage.name, stage.purpose, [line for line in lines if line["stage"] == stage.name], keys
        )
    write_whole(out / "summary.md", ("\n".join(parts) + "\n").encode())


def _stage(name: str, purpose: str, lines: list[dict[str, Any]], keys: set[str]) -> list[str]:
    """Return the lines of a stage's last run."""
    lines = [line for line in lines if line["key"] in keys]
    starts = [i for i, line in enumerate(lines) if line.get("event") == "started"]
    last = lines[starts[-1] :] if starts else lines
    events = [line for line in last if "event" in line and line["event"] != "started"]
    ended = "not run" if not last else _ending(events[-1]) if events else "cut off"
    rows = [line for line in last if "event" not in line]
    result = [f"## {name}: {purpose}", "", f"{ended}.", ""]
    if rows:
        result += ["| what | value | more |", "|---|---|---|", *map(_row, rows[:_SHOWN]), ""]
    return result


def _ending(event: dict[str, Any]) -> str:
    reason = f" ({event['reason']})" if event["reason"] else ""
    return f"{event['event'].capitalize()}{reason} after {event['took']} s"


def _row(line: dict[str, Any]) -> str:
    value, unit = line["value"], line["unit"]
    shown = "-" if value is None else value if isinstance(value, str) else _number(value, unit)
    return "| " + " | ".join(_escaped(cell) for cell in (line["name"], shown, _facts(line["facts"]))) + " |"


def _number(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        value, unit = value * 1e3, "ms"
    digits = 0 if not value or not math.isfinite(value) else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 8)}f} {unit}".strip()


def _facts(facts: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, float):
            return _number(value, "")
        if isinstance(value, dict):
            return ", ".join(f"{k} {shown(v)}" for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return _listed(value)
        return str(value)

    return "; ".join(f"{name} {shown(value)}" for name, value in facts.items() if name not in _UNSHOWN)[:300]


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _escaped(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
