"""Rehearse the benchmark of GPUs: stages that succeed, fail, die, hang, and go on the next time."""

import json
import os
import time

import pytest

pytest.importorskip("triton")

from benchmarks.gpu import runner as runners
from benchmarks.gpu.figures import FigureLog
from benchmarks.gpu.runner import Runner
from benchmarks.gpu.stages import STAGES, Stage
from benchmarks.gpu.summary import write_summary

MACHINE = Stage("machine", 60, "gpu_stages:describe", "the GPU")


def stage(name: str, limit: float = 60) -> Stage:
    """A stage of a known name, which the summary shows."""
    return Stage("peaks", limit, f"gpu_stages:{name}", "what is tried")


def events(runner: Runner) -> list[tuple[str, str]]:
    lines = [line for line in runner.figures.lines() if line.get("event") not in (None, "started")]
    return [(line["stage"], line["event"]) for line in lines]


@pytest.fixture
def mark(tmp_path, monkeypatch):
    monkeypatch.setenv("GPU_STAGES_MARK", str(tmp_path / "mark"))
    return tmp_path / "mark"


def test_a_finished_stage_is_not_run_again_until_the_gpu_or_the_code_changes(tmp_path, mark, monkeypatch):
    def ran() -> int:
        assert Runner(tmp_path / "out", 60, rehearsal=True).run([MACHINE, stage("works")])
        return len(mark.read_text())

    assert ran() == 1
    assert ran() == 1
    monkeypatch.setenv("GPU_STAGES_NAME", "another GPU")
    assert ran() == 2
    monkeypatch.setattr(runners, "code_digest", lambda: "other code")
    assert ran() == 3
    summary = (tmp_path / "out/summary.md").read_text()
    assert "| speed | 2.50 GB/s | bytes 100; with \\| a bar 1, 2 |" in summary
    assert summary.count("| speed |") == 1  # of this code and GPU alone
    assert "Every figure below was measured" in summary


@pytest.mark.parametrize(
    ("name", "event", "reason"),
    [("fails", "failed", "CUDA error: an illegal memory access"), ("dies", "failed", "status -11")],
)
def test_a_stage_that_fails_keeps_its_figures_and_harms_no_other(tmp_path, mark, name, event, reason):
    runner = Runner(tmp_path / "out", 120, rehearsal=True)
    after = Stage("kernels", 60, "gpu_stages:works", "the next one")
    assert not runner.run([MACHINE, stage(name), after])
    assert events(runner) == [("machine", "finished"), ("peaks", event), ("kernels", "finished")]
    summary = (tmp_path / "out/summary.md").read_text()
    assert reason in summary
    assert "| before |" in summary
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 1 << 20
    again = Runner(tmp_path / "out", 120, rehearsal=True)  # a stage that failed is tried again
    assert not again.run([MACHINE, stage(name), after])
    assert events(again)[3:] == [("machine", "finished"), ("peaks", event)]


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(tmp_path, mark):
    runner = Runner(tmp_path / "out", 120, rehearsal=True)
    limit = 20
    assert not runner.run([MACHINE, stage("hangs", limit)])
    assert events(runner)[-1] == ("peaks", "timed out")
    assert "| before | 3.00 s |" in (tmp_path / "out/summary.md").read_text()
    child = int(mark.read_text())
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"  # no zombie
    except FileNotFoundError:
        return False


def test_without_time_left_no_stage_is_started(tmp_path):
    runner = Runner(tmp_path / "out", 0, rehearsal=True)
    assert not runner.run([MACHINE, stage("works")])
    assert events(runner) == [("machine", "not started"), ("peaks", "not started")]
    assert "Not started (no time was left)" in (tmp_path / "out/summary.md").read_text()


def test_a_line_that_a_kill_cut_short_is_skipped_and_the_next_ones_count(tmp_path):
    log = FigureLog(tmp_path / "figures.jsonl")
    log.write("peaks", "key", name="a", value=1.0, unit="s", facts={})
    with log.path.open("a") as file:
        file.write('{"stage": "peaks", "na')
    log.write("peaks", "key", name="b", value=None, unit="s", facts={})
    assert [line["name"] for line in log.lines()] == ["a", "b"]
    write_summary(tmp_path, log, "key")
    assert "| b | - |" in (tmp_path / "summary.md").read_text()


def test_all_stages_together_fit_into_the_time_of_a_loan():
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert STAGES[0].name == "machine"
    needed = [s for s in STAGES if s.name not in ("strongest", "tiles", "counters")]  # only if time is left
    assert sum(s.limit for s in needed) <= 480


@pytest.mark.slow
def test_every_stage_is_rehearsed_in_the_interpreter(tmp_path):
    runner = Runner(tmp_path / "out", 1500, rehearsal=True)
    patient = [Stage(s.name, 600, s.source, s.purpose) for s in STAGES]
    complete = runner.run(patient)
    summary = (tmp_path / "out/summary.md").read_text()
    assert complete, summary
    assert "no time means anything" in summary
    figures = [line for line in runner.figures.lines() if "event" not in line]
    assert {line["stage"] for line in figures} == {s.name for s in STAGES}
    assert json.loads(json.dumps(figures)) == figures
    assert len(list(os.scandir(tmp_path / "out"))) <= 8
