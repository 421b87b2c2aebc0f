"""Calibrate, and write the pages, by nothing but what the stages wrote."""

import json

import numpy as np
import pytest

pytest.importorskip("triton")

from benchmarks.gpu import report
from benchmarks.gpu.calibrate import calibrate_folder
from benchmarks.gpu.figures import FigureLog
from benchmarks.gpu.report import PAGES, Times, times_of, written
from benchmarks.gpu.runs import last_run
from mirl_sparse.performance.calibration import Calibration

KERNELS = ("gram_kernel", "mix_kernel", "pointwise_kernel")
HIDDEN = Calibration("H200", 2e-6, 0.7, 0.5, 0.4, 0.8, dict(zip(KERNELS, (0.25, 0.4, 0.5), strict=True)))


class Results:
    """A folder of results as `make bench-gpu` leaves it."""

    def __init__(self, folder):
        self.folder, self.log = folder, FigureLog(folder / "figures.jsonl")

    def stage(self, name, figures, key="code-machine"):
        self.log.write(name, key, event="started", limit=60)
        for figure, value, unit, facts in figures:
            self.log.write(name, key, name=figure, value=value, unit=unit, facts=facts)
        self.log.write(name, key, event="finished", reason="", took=1.0)

    def machine(self, gpu="NVIDIA H200"):
        named = {"GPU": gpu, "torch": "2.11.0", "triton": "3.6.0", "CUDA": "13.0", "date": "2026-12-24"}
        self.stage("machine", [(name, value, "", {}) for name, value in named.items()], "code")

    def launches(self, large=True, wrong=1.0, noise=0.04):
        """Write launches of the hidden model; at 1024x1024 they take ``wrong`` times as long."""
        figures = {"kernels": [], "sizes": []}
        for stage, side, scale in (("kernels", 256, 3), ("sizes", 1024, 12))[: 1 + large]:
            g = np.random.default_rng(side)
            timed, model = [], []
            for i in range(300):
                kernel, parts = KERNELS[i % 3], [float(x) for x in scale * np.exp(g.normal(0, 1, 5))]
                seconds = HIDDEN.seconds(kernel, [part * 1e-6 for part in parts]) * np.exp(g.normal(0, noise))
                factor = wrong if side == 1024 and kernel == "mix_kernel" else 1
                other = i == 5  # it ran in another tile than the model takes
                us = None if i == 6 else seconds * 1e6 * factor  # it runs in no tile
                timed.append(["a step", kernel, "other" if other else "tile", us])
                model.append(["tile", *parts])
            figures[stage].append((f"launches {side}", 1.0, "us", {"rows": timed}))
            figures["kernels"].append(
                (f"model of launches {side}", 300.0, "", {"gpu": "H200", "rows": model})
            )
        for stage, each in figures.items():
            self.stage(stage, each)


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


def test_a_calibration_is_made_of_the_figures_alone(results, capsys):
    results.machine()
    results.stage("peaks", [("launch in a graph", 1.9, "us", {}), ("copy in memory", 4300.0, "GB/s", {})])
    results.launches()
    assert calibrate_folder(results.folder)
    stored = json.loads((results.folder / "calibration-h200.json").read_text())
    assert stored["accepted"]
    assert stored["calibration"]["memory"] == pytest.approx(HIDDEN.memory, rel=0.15)
    assert stored["calibration"]["issue"] == pytest.approx(HIDDEN.issue, rel=0.15)
    assert stored["calibration"]["measured"] == "2026-12-24, torch 2.11.0, triton 3.6.0, CUDA 13.0"
    assert sorted(group["launches"] for group in stored["test"]["kernels"]) == [99, 99, 100]
    said = capsys.readouterr().out
    assert "accepted" in said
    assert "not accepted" not in said


def test_a_misfit_is_printed_kernel_by_kernel(results, capsys):
    results.machine()
    results.launches(wrong=3.0)
    assert not calibrate_folder(results.folder)
    said = capsys.readouterr().out
    assert "not accepted: the model does not explain" in said
    assert "mix_kernel: 100 launches, measured" in said
    assert not json.loads((results.folder / "calibration-h200.json").read_text())["accepted"]


def test_without_a_test_nothing_is_accepted(results, capsys):
    results.machine()
    results.launches(large=False)
    assert not calibrate_folder(results.folder)
    assert "not accepted: no launches for 1024x1024 to test it on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gpu", "says"),
    [(None, "has no figures of a GPU"), ("rehearsal", "has no figures of a GPU"), ("NVIDIA H200", "lacking")],
)
def test_what_is_lacking_is_said_in_a_line(results, capsys, gpu, says):
    if gpu:
        results.machine(gpu)
        results.stage("headline", [("dense eager", 6e-3, "s", {})])
    assert not calibrate_folder(results.folder)
    said = capsys.readouterr().out
    assert says in said
    assert said.count("\n") == 1
    assert list(results.folder.glob("calibration*")) == []


def test_the_last_run_counts_and_of_a_stage_its_last_start(results):
    results.machine("NVIDIA L4")
    results.stage("headline", [("sparse triton", 9e-3, "s", {})], "code-first")
    results.machine()
    results.stage(
        "headline", [("sparse triton", 8e-3, "s", {}), ("dense eager", 6e-3, "s", {})], "code-second"
    )
    results.stage("headline", [("sparse triton", 7e-3, "s", {})], "code-second")
    results.machine("rehearsal")
    results.stage("headline", [("sparse triton", 1.0, "s", {})], "code-third")
    run = last_run(results.log)
    assert run.gpu == "NVIDIA H200"
    assert run.value("headline", "sparse triton") == 7e-3
    assert run.value("headline", "dense eager") is None
    assert last_run(results.log, rehearsed=True).gpu == "rehearsal"


MEASURED = Times("H200", "2026-12-24, torch 2.11.0, triton 3.6.0, CUDA 13.0", 3e-3, 6.6e-3, 3.3e-3, 3.3e-3)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_measured_figures_stand_beside_predicted_ones(path):
    page = path.read_text()
    once = written(page, MEASURED)
    assert once != page
    assert written(once, MEASURED) == once
    assert "2026-12-24, torch 2.11.0, triton 3.6.0, CUDA 13.0" in " ".join(once.split())
    assert "No GPU has" not in once
    assert "predicted" in once
    assert max(map(len, once.splitlines())) <= max(110, *map(len, page.splitlines()))


def test_the_measured_row_follows_the_predicted_one_of_its_gpu():
    page = written(PAGES[1].read_text(), MEASURED)
    rows = [row for row in page.splitlines() if "H200" in row and row.startswith("|")]
    assert rows[0].startswith("| H200 |")
    assert rows[1] == "| H200, measured | 6.6 ms | 3.3 ms | 3.0 ms | - | 2.2x | 1.1x | - |"
    other = written(page, Times("L40S", "2027", 1e-3, None, None, 2e-3))
    assert "| L40S, measured | - | - | 1.0 ms | - | - | - | - |" in other
    assert "| H200, measured |" in other


def test_times_are_of_the_network_and_not_of_its_compilation(results):
    results.machine()
    results.stage("peaks", [("launch in a graph", 1.9, "us", {})])
    assert times_of(last_run(results.log)) is None
    results.stage(
        "headline",
        [
            ("sparse triton", 3e-3, "s", {}),
            ("dense eager float32", 12e-3, "s", {}),
            ("dense eager", 6.6e-3, "s", {}),
            ("dense channels_last", None, "s", {"left_out": "differs"}),
            ("dense compiled with graphs", 3.5e-3, "s", {}),
        ],
    )
    compiled = [("dense compiled", 3.3e-3, "s", {}), ("dense compiled, compilation and all", 60.0, "s", {})]
    results.stage("strongest", [*compiled, ("sparse triton", 3.1e-3, "s", {})])
    assert times_of(last_run(results.log)) == MEASURED


def test_pages_are_not_written_without_a_run(tmp_path, monkeypatch, capsys):
    before = [path.read_text() for path in PAGES]
    monkeypatch.setattr("sys.argv", ["report", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 2
    assert "has no times of a GPU" in capsys.readouterr().err
    assert [path.read_text() for path in PAGES] == before
