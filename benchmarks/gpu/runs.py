"""Read the figures of the last run on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.figures import FigureLog
from benchmarks.gpu.summary import REHEARSAL

_Figures = dict[str, dict[str, Any]]  # lines by name


@dataclass
class Run:
    """Hold what was measured with the same code, GPU and versions.

    Attributes:
        stages: The figures of each stage's last start, by name.
    """

    stages: dict[str, _Figures] = field(default_factory=dict)

    def value(self, stage: str, name: str) -> Any:
        """Return the value of a figure, or None if there is none."""
        return self.stages.get(stage, {}).get(name, {}).get("value")

    def rows(self, stage: str, name: str) -> list[list[Any]]:
        """Return the rows of a figure, or [] if there are none."""
        rows: list[list[Any]] = self.stages.get(stage, {}).get(name, {}).get("facts", {}).get("rows", [])
        return rows

    @property
    def gpu(self) -> str:
        """Return the name of the GPU, as its driver gives it."""
        return str(self.value("machine", "GPU"))

    @property
    def versions(self) -> str:
        """Return the date and the versions that the figures depend on."""
        names = "torch", "triton", "CUDA"
        shown = [f"{name} {self.value('machine', name)}" for name in names]
        return ", ".join([str(self.value("machine", "date")), *shown])


def last_run(figures: FigureLog, rehearsed: bool = False) -> Run | None:
    """Return the last run that measured anything, or None.

    Args:
        figures: The lines of all runs.
        rehearsed: Whether a rehearsal counts.
    """
    runs: dict[str, Run] = {}
    machine: _Figures = {}
    for line in figures.lines():
        stage, key, starts = line["stage"], line["key"], line.get("event") == "started"
        if stage == "machine":  # it runs before the others, and its key has no digest of the machine yet
            machine = {} if starts else machine
            of_stage = machine
        else:
            run = runs.pop(key, Run())  # so that the last one comes last
            runs[key] = run
            run.stages["machine"] = machine
            of_stage = run.stages.setdefault(stage, {})
            if starts:
                of_stage.clear()
        if "event" not in line:
            of_stage[line["name"]] = line
    measured = [
        run
        for run in runs.values()
        if any(run.stages.get(stage) for stage in run.stages if stage != "machine")
        and (rehearsed or run.gpu != REHEARSAL)
    ]
    return measured[-1] if measured else None
