"""The suite: what it finds when something is planted, and that its page says what was measured."""

import signal
import subprocess
import time
from functools import partial

import cases
import check
import numpy as np
import processes
import pytest
import report
import results
import scaling

from mirl_kernels.core import cpu
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_sparse.performance.peers import EAGER

needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")


def gdfn_case(channels: int, side: int, runs: int) -> cases.Case:
    return cases.Case("quick", "gdfn", partial(cases._op, "gdfn", channels, side, (0.1,)), runs, EAGER)


def rows(case: cases.Case) -> list[results.Row]:
    comparison, facts = case.comparison([])
    for _ in range(case.runs):
        comparison.round()
    return list(results.rows_of(comparison.result().to_dict(), facts, section=case.section, case=case.name))


@needs_kernels
def test_a_wrong_op_has_no_speed_up(monkeypatch):
    before = rows(gdfn_case(48, 16, 3))
    (right,) = (r for r in before if r["contender"].startswith("sparse"))
    assert right["speedup"]["ratio"] > 0
    forward = PackedGDFN.forward
    monkeypatch.setattr(PackedGDFN, "forward", lambda self, x: forward(self, x) + 1e-3)
    after = rows(gdfn_case(48, 16, 3))
    (wrong,) = (r for r in after if r["contender"].startswith("sparse"))
    assert "speedup" not in wrong
    assert "median" not in wrong
    assert "differs" in check.worse(before, lambda cases: after)["gdfn", wrong["contender"]]


@needs_kernels
@pytest.mark.parametrize("path", results.FOLDER.glob("*/quick.jsonl"), ids=lambda path: path.parent.name)
def test_what_is_to_be_compared_again_is_still_measured(path):
    built = {(case.name, name) for case in cases.QUICK for name in case.build().sparse}
    kept = {(row["case"], row["contender"]) for row in results.read(path) if "speedup" in row}
    assert kept
    assert kept <= built


@needs_kernels
@pytest.mark.slow
def test_a_slow_down_of_a_fifth_is_found(monkeypatch):
    case = gdfn_case(96, 128, cases.QUICK[0].runs)
    before = rows(case)
    assert check.worse(before, lambda _: rows(case)) == {}
    forward = PackedGDFN.forward

    def slower(self, x):
        begin = time.perf_counter()
        result = forward(self, x)
        until = begin + 1.2 * (time.perf_counter() - begin)
        while time.perf_counter() < until:
            pass
        return result

    monkeypatch.setattr(PackedGDFN, "forward", slower)
    (how,) = check.worse(before, lambda _: rows(case)).values()
    assert "less" in how


def row(contender: str, median: float, **more) -> results.Row:
    return {"section": "quick", "case": "an op", "contender": contender, "median": median, **more}


def speedup(ratio: float, noise: float = 0.02) -> results.Row:
    return {"over": "dense eager", "ratio": ratio, "low": ratio * (1 - noise), "high": ratio * (1 + noise)}


def timed(contender: str, seconds: float, noise: float = 0.0) -> results.Row:
    times = seconds * np.random.default_rng(len(contender)).uniform(1 - noise, 1 + noise, 50)
    return row(contender, seconds, times=times.tolist())


@pytest.mark.parametrize(
    ("factor", "noise", "found"),
    [(1.2, 0.02, True), (1.08, 0.02, False), (1.2, 0.2, False), (0.5, 0.02, False)],
)
def test_check_compares_ratios(factor, noise, found):
    """A slow-down beyond a tenth and the noise fails, whatever the machine's speed today."""
    before = [row("dense eager", 1.0), row("sparse", 0.1, speedup=speedup(10, noise))]
    now = [timed("dense eager", 3.0), timed("sparse", 0.3 * factor)]
    assert bool(check.worse(before, lambda _: now)) == found


def test_check_measures_again_what_it_suspects():
    """Rounds of all tries count: a loss that was one try's noise is none, and what hides in one try's is found in three."""
    before = [row("sparse", 0.1, speedup=speedup(10, 0.01))]

    def measured(*sparse: float) -> list[set[str]]:
        asked, left = [], list(sparse)
        measured.found = check.worse(  # type: ignore[attr-defined]
            before,
            lambda cases: (
                asked.append(cases) or [timed("dense eager", 1.0, 0.3), timed("sparse", left.pop(0), 0.3)]
            ),
        )
        return asked

    assert measured(0.1) == [set()]
    assert not measured.found
    assert measured(0.125, 0.09) == [set(), {"an op"}]
    assert not measured.found
    assert measured(0.125, 0.125, 0.125) == [set(), {"an op"}, {"an op"}]
    assert measured.found


def test_check_misses_what_is_missing():
    before = [row("dense eager", 1.0), row("sparse", 0.1, speedup=speedup(10))]
    for now in ([timed("dense eager", 1.0)], [timed("sparse", 0.1)], []):
        assert "not measured" in check.worse(before, lambda _, now=now: now)["an op", "sparse"]


def test_sweeps_go_on_with_the_strongest():
    medians = {"dense eager, stock allocator": 5, "dense eager": 4, "dense OpenVINO": 3, "dense compiled": 6,
               "dense compiled channels_last": 2}  # fmt: skip
    measured = [row(name, m) for name, m in medians.items()] + [{**row("dense MNN", 1), "case": "another"}]
    assert cases.strongest(measured, "an op") == (
        "dense eager, stock allocator", "dense compiled channels_last", "dense OpenVINO",
    )  # fmt: skip
    faster = [*measured, row("dense OpenVINO", 1.8)]
    assert cases.strongest(faster, "an op")[1:] == ("dense OpenVINO",)
    alike = [*measured, row("dense OpenVINO", 1.9)]
    assert cases.strongest(alike, "an op")[1:] == ("dense OpenVINO", "dense compiled channels_last")
    assert cases.strongest(measured, "none") == tuple(cases.DENSE)


def test_crossover():
    points = [{"density": d, "speedup": {"ratio": 0.4 / d}} for d in (0.1, 0.2, 0.5, 1.0)]
    assert report.crossover(points) == pytest.approx(0.4)
    assert report.crossover(points[:2]) is None


def test_a_win_within_the_noise_is_said_to_be_one():
    points = [
        {"density": d, "speedup": {"ratio": r, "low": r - 0.2}}
        for d, r in ((0.1, 3.0), (0.035, 1.1), (1.0, 1.5))
    ]
    assert report._crossover(points) == "at every density (within the noise at 3.5%)"
    assert report._crossover(points[::2]) == "at every density"


@pytest.mark.parametrize(
    ("status", "printed", "reason"),
    [
        (-signal.SIGKILL, "a warning", "memory"),
        (1, "Traceback\nValueError: no", "ValueError: no"),
        (3, "", "exit status 3"),
    ],
)
def test_a_process_that_fails_says_why(status, printed, reason):
    assert reason in processes._reason(subprocess.CalledProcessError(status, "python", stderr=printed))


@pytest.mark.parametrize("threads", [2, 4])
def test_the_scaling_model_finds_what_it_was_given(threads):
    fixed, per_pixel, serial = 0.004, 3e-7, 0.1

    def measured(side: int, threads: int) -> results.Row:
        seconds = (fixed + per_pixel * side**2) * (serial + (1 - serial) / threads)
        return {"network": "small", "criterion": "small", "density": 0.1, "shape": [1, 3, side, side], "threads": threads,
                "bytes": 100 * side**2, "median": seconds, "speedup": {"ratio": 2.0}}  # fmt: skip

    found = scaling.fit([*(measured(side, threads) for side in (64, 128, 1024)), measured(128, 1)], "small")
    assert found["sparse"]["fixed"] == pytest.approx(fixed)
    assert found["sparse"]["per_pixel"] == pytest.approx(per_pixel)
    assert found["sparse"]["serial"] == pytest.approx(serial)
    assert found["dense"]["per_pixel"] == pytest.approx(2 * per_pixel)
    assert scaling.latency(found["sparse"], 1e6, 1, 1e15) == pytest.approx(fixed + per_pixel * 1e6)
    assert scaling.latency(found["sparse"], 1e6, 1000, 1e9) == pytest.approx(0.1)  # 100 bytes a pixel
    assert scaling.core_hours(found["sparse"], 1e6, 3600, 8, 1e15) == pytest.approx(fixed + per_pixel * 1e6)


def swept(batch: int, side: int, threads: int, density: float = 0.1, criterion: str = "small") -> results.Row:
    return {"network": "small", "criterion": criterion, "density": density, "shape": [batch, 3, side, side],
            "threads": threads, "speedup": speedup(2)}  # fmt: skip


def test_a_sweep_is_of_one_thing():
    of_size, of_batch, one_thread = swept(1, 256, 2), swept(4, 64, 2), swept(1, 128, 1)
    both = [swept(1, 64, 2), swept(1, 128, 2)]
    every = [
        of_size,
        of_batch,
        one_thread,
        *both,
        swept(1, 64, 2, 0.5, "layerwise"),
        swept(1, 64, 2, criterion="uneven"),
    ]
    assert results.sweep(every, "small", "size") == [*both, of_size]
    assert results.sweep(every, "small", "batch") == [both[0], of_batch]
    assert results.sweep(every, "small", "threads") == [one_thread, both[1]]
    assert results.sweep(every, "full-size", "size") == []


def test_what_is_measured_again_takes_the_place_of_what_was(tmp_path):
    path = tmp_path / "full.jsonl"
    old = [row("dense", 1.0), row("sparse", 2.0), {**row("sparse", 3.0), "case": "another"}]
    keep = results.ResultStore(path, old)
    for new in (row("dense", 4.0), row("sparse", 5.0)):
        keep(new)
        assert results.read(path) == keep.rows
    assert [r["median"] for r in keep.rows] == [4.0, 5.0, 3.0]


REPORTS = {path: report.Report(results.read(path)) for path in sorted(results.FOLDER.glob("*/full.jsonl"))}


def test_the_readme_and_the_docs_say_what_was_measured():
    assert REPORTS
    reports = list(REPORTS.values())
    assert report.readme(reports) in report.README.read_text()
    assert report.performance(reports) in report.PERFORMANCE.read_text()


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_the_page_says_what_was_measured(path, tmp_path):
    found = REPORTS[path]
    assert all(map(found.has, report.PARTS))
    page = report.markdown(found)
    assert page == path.with_name("report.md").read_text()
    assert report.html(page) == path.with_name("report.html").read_text()
    report._plots(found, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in path.parent.glob("*.png")}


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_a_part_that_was_not_measured_is_left_out(path):
    some = report.Report([r for r in REPORTS[path].rows if r["section"] in ("network", "profile")])
    page = report.markdown(some)
    assert "## The network at 256x256" in page
    assert "## By density" not in page


def test_every_sparse_row_has_its_conditions():
    paths = list(results.FOLDER.glob("*/*.jsonl"))
    assert paths
    for path in paths:
        for found in results.read(path):
            if "speedup" in found:
                assert {
                    "processor",
                    "isa",
                    "threads",
                    "allocator",
                    "torch",
                    "date",
                    "runs",
                    "p20",
                    "p80",
                } <= set(found)
                assert found["difference"] <= 1e-4
