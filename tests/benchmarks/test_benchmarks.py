"""Check that the suite finds planted errors and slow-downs, and that its pages match the results."""

import signal
import subprocess
import time
from functools import partial

import numpy as np
import pytest

from benchmarks.suite import cases, check, machine_results, plots, processes, report, results, scaling
from benchmarks.suite.rows import Row
from mirl_kernels.core import cpu
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_sparse.performance.peers import EAGER

needs_kernels = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")


def gdfn_case(channels: int, side: int, runs: int) -> cases.Case:
    return cases.Case("quick", "gdfn", partial(cases._op, "gdfn", channels, side, (0.1,)), runs, EAGER)


def rows(case: cases.Case) -> list[Row]:
    comparison, facts = case.comparison([])
    for _ in range(case.runs):
        comparison.round()
    return list(results.rows_of(comparison.result(), facts, case.section, case.name, case.facts))


@needs_kernels
def test_wrong_ops_have_no_speed_up(monkeypatch):
    before = rows(gdfn_case(48, 16, 3))
    (correct,) = (r for r in before if r["contender"].startswith("sparse"))
    assert correct["speedup"]["ratio"] > 0
    forward = PackedGDFN.forward
    monkeypatch.setattr(PackedGDFN, "forward", lambda self, x: forward(self, x) + 1e-3)
    after = rows(gdfn_case(48, 16, 3))
    (wrong,) = (r for r in after if r["contender"].startswith("sparse"))
    assert "speedup" not in wrong
    assert "median" not in wrong
    assert "differs" in check.worse(before, lambda cases: after)["gdfn", wrong["contender"]]


@needs_kernels
@pytest.mark.parametrize(
    "path", sorted(results.FOLDER.glob("*/quick.jsonl")), ids=lambda path: path.parent.name
)
def test_committed_comparisons_are_still_in_the_suite(path):
    built = {(case.name, name) for case in cases.QUICK for name in case.build().sparse}
    committed = {(row["case"], row["contender"]) for row in results.read(path) if "speedup" in row}
    assert committed
    assert committed <= built


@needs_kernels
@pytest.mark.quiet
@pytest.mark.slow
def test_slow_downs_of_a_fifth_are_found(monkeypatch):
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
    (message,) = check.worse(before, lambda _: rows(case)).values()
    assert "less" in message


def row(contender: str, median: float, **more) -> Row:
    return {"section": "quick", "case": "an op", "contender": contender, "median": median, **more}


def speedup(ratio: float, noise: float = 0.02) -> Row:
    return {"over": "dense eager", "ratio": ratio, "low": ratio * (1 - noise), "high": ratio * (1 + noise)}


def timed(contender: str, seconds: float, noise: float = 0.0) -> Row:
    times = seconds * np.random.default_rng(len(contender)).uniform(1 - noise, 1 + noise, 50)
    return row(contender, seconds, times=times.tolist())


@pytest.mark.parametrize(
    ("factor", "noise", "is_worse"),
    [(1.2, 0.02, True), (1.08, 0.02, False), (1.2, 0.2, False), (0.5, 0.02, False)],
)
def test_losses_beyond_a_tenth_and_the_noise_fail_at_any_speed_of_the_machine(factor, noise, is_worse):
    before = [row("dense eager", 1.0), row("sparse cpu", 0.1, speedup=speedup(10, noise))]
    now = [timed("dense eager", 3.0), timed("sparse cpu", 0.3 * factor)]
    assert bool(check.worse(before, lambda _: now)) == is_worse


def losses_and_tries(*sparse_seconds: float) -> tuple[dict[tuple[str, str], str], list[set[str]]]:
    """Return what got worse, and the cases of each try; every try measures the next of the seconds."""
    tries, remaining = [], list(sparse_seconds)

    def measure(names: set[str]) -> list[Row]:
        tries.append(names)
        return [timed("dense eager", 1.0, 0.3), timed("sparse cpu", remaining.pop(0), 0.3)]

    losses = check.worse([row("sparse cpu", 0.1, speedup=speedup(10, 0.01))], measure)
    return losses, tries


def test_unsuspected_cases_are_measured_once():
    assert losses_and_tries(0.1) == ({}, [set()])


def test_noise_of_one_try_is_no_loss():
    assert losses_and_tries(0.125, 0.09) == ({}, [set(), {"an op"}])


def test_losses_hidden_by_the_noise_of_one_try_are_found_in_three():
    losses, tries = losses_and_tries(0.125, 0.125, 0.125)
    assert tries == [set(), {"an op"}, {"an op"}]
    assert losses


def test_missing_contenders_fail_the_check():
    before = [row("dense eager", 1.0), row("sparse cpu", 0.1, speedup=speedup(10))]
    for now in ([timed("dense eager", 1.0)], [timed("sparse cpu", 0.1)], []):
        assert "not measured" in check.worse(before, lambda _, now=now: now)["an op", "sparse cpu"]


def test_formats_of_pytorch_are_not_judged():
    before = [row("torch CSR 10.0%", 0.1, speedup=speedup(10))]
    assert check.worse(before, lambda _: [timed("dense eager", 1.0), timed("torch CSR 10.0%", 3.0)]) == {}


def test_sweeps_use_the_strongest_dense_runs():
    medians = {
        "dense eager, stock allocator": 5,
        "dense eager": 4,
        "dense OpenVINO": 3,
        "dense compiled": 6,
        "dense compiled channels_last": 2,
    }
    measured = [row(name, m) for name, m in medians.items()] + [{**row("dense MNN", 1), "case": "another"}]
    assert cases.strongest(measured, "an op") == (
        "dense eager, stock allocator",
        "dense compiled channels_last",
        "dense OpenVINO",
    )
    faster = [*measured, row("dense OpenVINO", 1.8)]
    assert cases.strongest(faster, "an op")[1:] == ("dense OpenVINO",)
    alike = [*measured, row("dense OpenVINO", 1.9)]
    assert cases.strongest(alike, "an op")[1:] == ("dense OpenVINO", "dense compiled channels_last")
    assert cases.strongest(measured, "none") == tuple(cases.DENSE)


def test_crossover_is_the_density_where_the_speed_up_is_one():
    points = [{"density": d, "speedup": {"ratio": 0.4 / d}} for d in (0.1, 0.2, 0.5, 1.0)]
    assert machine_results.crossover(points) == pytest.approx(0.4)
    assert machine_results.crossover(points[:2]) is None


def test_wins_within_the_noise_are_named():
    points = [
        {"density": d, "speedup": {"ratio": r, "low": r - 0.2}}
        for d, r in ((0.1, 3.0), (0.035, 1.1), (1.0, 1.5))
    ]
    assert report._wins(points) == "at every density (within the noise at 3.5%)"
    assert report._wins(points[::2]) == "at every density"


@pytest.mark.parametrize(
    ("status", "printed", "reason"),
    [
        (-signal.SIGKILL, "a warning", "memory"),
        (1, "Traceback\nValueError: no", "ValueError: no"),
        (3, "", "exit status 3"),
    ],
)
def test_failed_processes_say_why(status, printed, reason):
    assert reason in processes._reason(subprocess.CalledProcessError(status, "python", stderr=printed))


@pytest.mark.parametrize("threads", [2, 4])
def test_the_scaling_model_recovers_its_parameters(threads):
    fixed, per_pixel, serial = 0.004, 3e-7, 0.1

    def measured(side: int, threads: int) -> Row:
        seconds = (fixed + per_pixel * side**2) * (serial + (1 - serial) / threads)
        return {
            "network": "small",
            "criterion": "small",
            "density": 0.1,
            "shape": [1, 3, side, side],
            "threads": threads,
            "bytes": 100 * side**2,
            "median": seconds,
            "speedup": {"ratio": 2.0},
        }

    models = scaling.fit([*(measured(side, threads) for side in (64, 128, 1024)), measured(128, 1)], "small")
    assert models["sparse"].fixed == pytest.approx(fixed)
    assert models["sparse"].per_pixel == pytest.approx(per_pixel)
    assert models["sparse"].serial == pytest.approx(serial)
    assert models["dense"].per_pixel == pytest.approx(2 * per_pixel)
    assert scaling.latency(models["sparse"], 1e6, 1, 1e15) == pytest.approx(fixed + per_pixel * 1e6)
    assert scaling.latency(models["sparse"], 1e6, 1000, 1e9) == pytest.approx(0.1)  # 100 bytes a pixel
    assert scaling.core_hours(models["sparse"], 1e6, 3600, 8, 1e15) == pytest.approx(fixed + per_pixel * 1e6)


def swept(batch: int, side: int, threads: int, density: float = 0.1, criterion: str = "small") -> Row:
    return {
        "network": "small",
        "criterion": criterion,
        "density": density,
        "shape": [batch, 3, side, side],
        "threads": threads,
        "speedup": speedup(2),
    }


def test_sweeps_vary_one_quantity():
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


def test_new_rows_replace_old_rows_of_the_same_case(tmp_path):
    path = tmp_path / "full.jsonl"
    old = [row("dense", 1.0), row("sparse", 2.0), {**row("sparse", 3.0), "case": "another"}]
    keep = results.ResultStore(path, old)
    for new in (row("dense", 4.0), row("sparse", 5.0)):
        keep(new)
        assert results.read(path) == keep.rows
    assert [r["median"] for r in keep.rows] == [4.0, 5.0, 3.0]


MACHINES = {
    path: machine_results.MachineResults(results.read(path))
    for path in sorted(results.FOLDER.glob("*/full.jsonl"))
}


def test_the_readme_and_the_docs_match_the_results():
    assert MACHINES
    machines = list(MACHINES.values())
    assert report.readme(machines) in report.README.read_text()
    assert report.performance(machines) in report.PERFORMANCE.read_text()


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.parent.name)
def test_the_page_matches_the_results(path, tmp_path):
    measured = MACHINES[path]
    assert all(measured.has_sections(*sections) for sections in report.PARTS.values())
    page = report.markdown(measured)
    assert page == path.with_name("report.md").read_text()
    assert report.html(page) == path.with_name("report.html").read_text()
    plots.save_plots(measured, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in path.parent.glob("*.png")}


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.parent.name)
def test_unmeasured_parts_are_left_out(path):
    rows = [r for r in MACHINES[path].rows if r["section"] in ("network", "profile")]
    page = report.markdown(machine_results.MachineResults(rows))
    assert "## The network at 256x256" in page
    assert "## By density" not in page


def test_sparse_rows_have_their_conditions():
    paths = list(results.FOLDER.glob("*/*.jsonl"))
    assert paths
    for path in paths:
        for r in results.read(path):
            if "speedup" in r:
                conditions = {"processor", "isa", "threads", "allocator", "torch", "date"}
                assert conditions | {"runs", "p20", "p80"} <= set(r)
                assert r["difference"] <= 1e-4
