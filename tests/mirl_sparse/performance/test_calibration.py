"""Constants that are hidden in times are found again, and a model that is wrong is not accepted."""

from dataclasses import replace

import numpy as np
import pytest

from mirl_sparse.performance import calibration as calibrations
from mirl_sparse.performance.calibration import (
    PARTS,
    Calibration,
    Check,
    DenseRow,
    Group,
    Row,
    check,
    file_stem,
    fit,
    read_calibration,
    to_json,
)

KERNELS = ("gram", "mix", "pointwise", "conv", "compose", "sum")
HIDDEN = Calibration(
    "H200",
    launch=2.2e-6,
    memory=0.7,
    cache=0.5,
    tensor=0.4,
    waiting=0.8,
    issue=dict(zip(KERNELS, (0.25, 0.4, 0.5, 0.35, 0.6, 0.3), strict=True)),
    dense={"convolution": 0.6, "other": 0.3, "1x1 convolution": 0.5},
)
NOISE = 0.05  # standard deviation of the logarithm of a time
FOUND = 0.12  # within which a constant is found, relative


def launches(count: int, seed: int = 0, noise: float = NOISE, scale: float = 3.0) -> list[Row]:
    """Launches of the hidden model, each part the busiest in some, with noise."""
    g, rows = np.random.default_rng(seed), []
    for i in range(count):
        parts = tuple(float(x) for x in scale * 1e-6 * np.exp(g.normal(0, 1, len(PARTS))))
        kernel = KERNELS[i % len(KERNELS)]
        rows.append(Row(kernel, HIDDEN.seconds(kernel, parts) * float(np.exp(g.normal(0, noise))), parts))
    return rows


def steps(count: int) -> list[DenseRow]:
    g, rows = np.random.default_rng(1), []
    for i in range(count):
        kinds = {kind: float(1e-5 * np.exp(g.normal(0, 1))) for kind in HIDDEN.dense}
        seconds = 8 * HIDDEN.launch + sum(part / HIDDEN.dense[kind] for kind, part in kinds.items())
        rows.append(DenseRow(str(i), seconds * np.exp(g.normal(0, NOISE)), 8, kinds))
    return rows


def test_hidden_constants_are_found():
    fitted = fit("H200", launches(390), steps(63), measured="today")
    for name in ("launch", "memory", "cache", "tensor", "waiting"):
        assert getattr(fitted, name) == pytest.approx(getattr(HIDDEN, name), rel=FOUND), name
    assert fitted.issue == pytest.approx(HIDDEN.issue, rel=FOUND)
    assert fitted.dense == pytest.approx(HIDDEN.dense, rel=2 * FOUND)
    assert fitted.guessed == ()
    tested = check(fitted, launches(2000, seed=2, scale=12.0))
    assert tested.accepted
    assert tested.total == pytest.approx(1, abs=0.05)


def test_one_time_in_eleven_may_be_disturbed():
    rows = launches(390)
    disturbed = [
        replace(row, measured=5 * row.measured) if i % 11 == 3 else row for i, row in enumerate(rows)
    ]
    fitted = fit("H200", disturbed)
    assert fitted.memory == pytest.approx(HIDDEN.memory, rel=0.25)
    assert check(fitted, launches(2000, seed=2)).accepted


def test_a_part_that_is_never_the_busiest_keeps_what_was_measured_by_itself():
    rows = [replace(row, parts=(row.parts[0] / 1e3, *row.parts[1:])) for row in launches(390)]
    fitted = fit("H200", rows, start={"memory": 0.9})
    assert fitted.guessed == ("memory",)
    assert fitted.memory == pytest.approx(0.9, rel=0.05)


def test_a_wrong_model_is_not_accepted_and_the_misfit_is_by_kernel():
    def add_up(row: Row) -> Row:  # large launches take the square of what they should
        return replace(row, measured=row.measured * (sum(row.parts) / 1e-5) ** 1.5)

    fitted = fit("H200", list(map(add_up, launches(390))))
    tested = check(fitted, list(map(add_up, launches(2000, seed=2, scale=12.0))))
    assert not tested.accepted
    assert {group.kernel for group in tested.groups} == set(KERNELS)
    assert [g.measured for g in tested.groups] == sorted((g.measured for g in tested.groups), reverse=True)


@pytest.mark.parametrize(
    ("predicted", "near", "accepted"),
    [(1.0, 80, True), (1.14, 100, True), (1.16, 100, False), (0.84, 100, False), (1.0, 79, False)],
)
def test_both_the_total_and_most_launches_must_be_right(predicted, near, accepted):
    assert Check((Group("mix", 100, 1.0, predicted, near),)).accepted == accepted


def test_fewer_launches_than_constants_are_refused():
    with pytest.raises(ValueError, match="9 launches were timed; expected more than the 11 constants"):
        fit("H200", launches(9))


def test_only_an_accepted_calibration_is_read_again(tmp_path):
    path = tmp_path / "h200.json"
    assert read_calibration("H200", tmp_path) is None
    good, bad = (Check((Group("mix", 10, 1.0, predicted, 10),)) for predicted in (1.0, 2.0))
    path.write_text(to_json(HIDDEN, good))
    assert read_calibration("H200", tmp_path) == HIDDEN
    for refused in (bad, None):
        path.write_text(to_json(HIDDEN, refused))
        assert read_calibration("H200", tmp_path) is None


def test_every_calibration_in_the_package_is_of_a_known_gpu_and_accepted():
    pytest.importorskip("triton")
    from mirl_kernels.core.triton.model import GPUS

    stored = {path.stem for path in calibrations.FOLDER.glob("*")}
    assert stored == {file_stem(gpu) for gpu in GPUS if read_calibration(gpu)}
