"""Run the stages one after the other, each in a process, and say what came of it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.figures import FigureLog
from benchmarks.gpu.stages import Stage
from benchmarks.gpu.summary import write_summary

ROOT = Path(__file__).parents[2]
# Environment of the stages: the prepared folder, and one that they leave each other files in.
PREPARED, WORK = "MIRL_BENCH_PREPARED", "MIRL_BENCH_WORK"
TRITON_CACHE = "triton"  # in the work folder: kernels that were compiled elsewhere
_LEAST = 5.0  # seconds: with less time left no stage is started
_LOG_BYTES = 8 << 20  # of what stages print; the rest is dropped


def code_digest(root: Path = ROOT) -> str:
    """Return a digest of all Python code that may be measured."""
    digest = hashlib.sha256()
    for folder in ("kernels", "mirl_sparse", "benchmarks", "tests/triton"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass
class Runner:
    """Run stages within a time.

    Attributes:
        out: Folder of the results: ``figures.jsonl``, ``summary.md`` and ``log.txt``.
        seconds: The time for all stages together.
        rehearsal: See `setting.Setting`.
        prepared: The folder that `prepare` made; by default "prepared" in that of the results.
        key: What results are valid for; set by the stage "machine".
    """

    out: Path
    seconds: float
    rehearsal: bool = False
    prepared: Path | None = None
    key: str = ""

    def __post_init__(self) -> None:
        self.figures = FigureLog(self.out / "figures.jsonl")
        self._until = time.monotonic() + self.seconds

    def run(self, stages: Iterable[Stage]) -> bool:
        """Run the stages that are not finished yet; return whether all are now."""
        self.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="mirl-bench-gpu-") as work:
            self._work = Path(work)
            return self._run(stages)

    def _run(self, stages: Iterable[Stage]) -> bool:
        self.key, complete = code_digest(), True
        for stage in stages:
            if stage.name == "machine":
                complete &= self._run_stage(stage)
                self.key = f"{code_digest()}-{self._machine_digest()}"
            elif self._is_finished(stage):
                print(f"{stage.name}: finished before", flush=True)
            else:
                complete &= self._run_stage(stage)
            write_summary(self.out, self.figures, self.key)
        return complete

    def _machine_digest(self) -> str:
        """Return a digest of the last description of the machine: its GPU and versions."""
        lines = [line for line in self.figures.lines() if line["stage"] == "machine"]
        described = {line["name"]: line["value"] for line in lines if line.get("facts", {}).get("in_key")}
        return hashlib.sha256(repr(sorted(described.items())).encode()).hexdigest()[:12]

    def _is_finished(self, stage: Stage) -> bool:
        return any(
            (line["stage"], line["key"], line.get("event")) == (stage.name, self.key, "finished")
            for line in self.figures.lines()
        )

    def _run_stage(self, stage: Stage) -> bool:
        """Run a stage, and write and return whether it finished."""
        left = self._until - time.monotonic()
        if left < _LEAST:
            return self._ended(stage, "not started", "no time was left")
        began, limit = time.monotonic(), min(stage.limit, left)
        self.figures.write(stage.name, self.key, event="started", limit=limit)
        words = stage.name, stage.source, self.key, str(self.figures.path.resolve())
        command = [sys.executable, "-m", "benchmarks.gpu.child", *words, *["rehearsal"] * self.rehearsal]
        status, said = self._in_process(command, limit)
        took = time.monotonic() - began
        if status is None:
            return self._ended(stage, "timed out", f"after {limit:.0f} s", took)
        if status:
            last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
            return self._ended(stage, "failed", f"status {status}: {last.strip()[:300]}", took)
        return self._ended(stage, "finished", "", took)

    def _in_process(self, command: Sequence[str], limit: float) -> tuple[int | None, str]:
        """Return the exit status, None if it ran past its limit, and what the process printed."""
        path = self.out / "log.txt"
        path.touch()
        with path.open("r+b") as log:
            begin = log.seek(0, os.SEEK_END)
            if begin > _LOG_BYTES:
                log.truncate(0)
                begin = log.seek(0)
            log.write(f"\n== {' '.join(command[3:4])}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )
            try:
                status: int | None = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:  # what it has started, too, also where this process is stopped
                _kill_group(process)
            log.seek(begin)
            return status, log.read().decode(errors="replace")

    def _environment(self) -> dict[str, str]:
        """Return an environment in which the code is imported from the source tree."""
        paths = [str(ROOT / folder) for folder in (".", "kernels", "training", "tests/helpers")]
        paths += filter(None, [os.environ.get("PYTHONPATH")])
        added = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", WORK: str(self._work)}
        added[PREPARED] = str((self.prepared or self.out / "prepared").resolve())
        if self.rehearsal:
            added["TRITON_INTERPRET"] = "1"
        if (self._work / TRITON_CACHE).exists():  # the stage "machine" has found them to be of use
            added["TRITON_CACHE_DIR"] = str(self._work / TRITON_CACHE)
        return os.environ | added

    def _ended(self, stage: Stage, event: str, reason: str, took: float = 0.0) -> bool:
        self.figures.write(stage.name, self.key, event=event, reason=reason, took=round(took, 1))
        print(f"{stage.name}: {event}{f' ({reason})' if reason else ''}, {took:.0f} s", flush=True)
        return event == "finished"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
