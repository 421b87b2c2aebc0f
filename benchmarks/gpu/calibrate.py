"""Fit the predictions to the launches of 256x256, test them on those of 1024x1024, and write the constants.

    python -m benchmarks.gpu.calibrate

It reads ``figures.jsonl`` and needs no GPU. ``calibration-GPU.json`` is written beside it. An accepted
calibration counts in ``mirl-sparse inspect --gpus`` once it lies in ``mirl_sparse/performance/calibrations``
as ``GPU.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.figures import FigureLog
from benchmarks.gpu.runs import Run, last_run
from mirl_sparse.files import write_whole
from mirl_sparse.performance.calibration import (
    EACH,
    SHARE,
    TOTAL,
    Calibration,
    Check,
    DenseRow,
    Row,
    check,
    file_stem,
    fit,
    to_json,
)

FIT, TEST = 256, 1024  # sides of the images
_STAGES = {FIT: "kernels", TEST: "sizes"}


class Lacking(Exception):
    """Say in one line what was not measured."""


def rows_of(run: Run, side: int) -> list[Row]:
    """Return the launches for an image of a side, as far as they were made in the tile that is predicted."""
    timed = run.rows(_STAGES[side], f"launches {side}")
    model = run.rows("kernels", f"model of launches {side}")
    if not timed or not model:
        raise Lacking(f"the {'times' if not timed else 'predictions'} of the launches for {side}x{side}")
    if len(timed) != len(model):
        raise Lacking(f"predictions of all {len(timed)} launches for {side}x{side}: there are {len(model)}")
    return [
        Row(kernel, us * 1e-6, tuple(part * 1e-6 for part in parts))
        for (_, kernel, tile, us), (predicted, *parts) in zip(timed, model, strict=True)
        if tile == predicted and us
    ]


def _dense_rows(run: Run) -> list[DenseRow]:
    model = {name: (count, kinds) for name, count, kinds in run.rows("kernels", f"model of dense {FIT}")}
    return [
        DenseRow(name, us * 1e-6, model[name][0], {k: part * 1e-6 for k, part in model[name][1].items()})
        for name, us in run.rows("kernels", f"dense {FIT}")
        if name in model and 0 < us < float("inf")
    ]


def _start(run: Run, gpu: str) -> dict[str, float]:
    """Return the constants that the stage "peaks" measured by themselves."""
    from mirl_kernels.core.triton.model import GPUS

    peaks = GPUS[gpu]
    measured = {
        "launch": (run.value("peaks", "launch in a graph"), 1e6),
        "memory": (run.value("peaks", "copy in memory"), peaks.memory / 1e9),
        "cache": (run.value("peaks", "copy in the cache"), peaks.cache / 1e9),
        "tensor": (run.value("peaks", "matrix product float16"), 2 * peaks.tensor / 1e12),
    }
    return {name: value / peak for name, (value, peak) in measured.items() if value}


def calibrate(run: Run) -> tuple[Calibration, Check | None]:
    """Fit a calibration to a run, and test it; without times of 1024x1024 there is no test.

    Raises:
        Lacking: The run lacks the launches of 256x256, or too few of them can be used.
    """
    lines = run.stages.get("kernels", {}).get(f"model of launches {FIT}", {})
    gpu = lines.get("facts", {}).get("gpu")
    fitted_to = rows_of(run, FIT)
    try:
        calibration = fit(gpu, fitted_to, _dense_rows(run), _start(run, gpu), run.versions)
    except ValueError as error:
        raise Lacking(f"enough launches in the predicted tiles: {error}") from None
    try:
        return calibration, check(calibration, rows_of(run, TEST))
    except Lacking as lacking:
        print(f"not tested; lacking: {lacking}")
        return calibration, None


def report(calibration: Calibration, tested: Check | None) -> Iterator[str]:
    """Yield the lines that say what was fitted, and how well it predicts."""
    fractions = {part: getattr(calibration, part) for part in ("memory", "cache", "tensor", "waiting")}
    fractions |= {f"issue of {kernel}": value for kernel, value in calibration.issue.items()}
    fractions |= {f"dense {kind}": value for kind, value in calibration.dense.items()}
    gap = f"{calibration.launch * 1e6:.2f} us from launch to launch"
    yield f"{calibration.gpu}: {gap}; fractions of the peaks:"
    for name, value in fractions.items():
        guessed = name.removeprefix("issue of ") in calibration.guessed
        yield f"  {name}: {value:.2f}{' (guessed: it decides too few launches)' if guessed else ''}"
    if tested is None:
        yield f"not accepted: no launches for {TEST}x{TEST} to test it on"
        return
    yield f"test on {TEST}x{TEST}: predicted {tested.total:.2f} of the measured time (within {TOTAL:.0%})"
    yield f"  {tested.near:.0%} of the launches within {EACH:.0%} (at least {SHARE:.0%})"
    for group in tested.groups if not tested.accepted else ():
        yield (
            f"  {group.kernel}: {group.launches} launches, measured {group.measured * 1e3:.3f} ms,"
            f" predicted {group.predicted * 1e3:.3f} ms; {group.near} within {EACH:.0%}"
        )
    yield "accepted" if tested.accepted else "not accepted: the model does not explain the times above"


def calibrate_folder(out: Path, rehearsed: bool = False) -> bool:
    """Calibrate by the last run of a folder of results, print the outcome, and return whether it is accepted.

    Args:
        out: The folder; ``calibration-GPU.json`` is written there.
        rehearsed: Whether a rehearsal counts; its times mean nothing.
    """
    run = last_run(FigureLog(out / "figures.jsonl"), rehearsed)
    if run is None:
        print(f"no calibration: {out / 'figures.jsonl'} has no figures of a GPU; make bench-gpu writes them")
        return False
    try:
        calibration, tested = calibrate(run)
    except Lacking as lacking:
        print(f"no calibration; lacking: {lacking}")
        return False
    print("\n".join(report(calibration, tested)))
    name = "rehearsal" if rehearsed else file_stem(calibration.gpu)
    write_whole(out / f"calibration-{name}.json", to_json(calibration, tested).encode())
    return tested is not None and tested.accepted


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.calibrate", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="folder of results")
    parser.add_argument("--rehearsal", action="store_true", help="take a rehearsal, whose times mean nothing")
    asked = parser.parse_args()
    sys.exit(not calibrate_folder(asked.out, asked.rehearsal))


if __name__ == "__main__":
    main()
