"""Fit the predictions for a GPU to launches that were timed on it, and test the fit on others.

A launch takes as long as the busiest part of the GPU, each part at a fraction of its peak, or as its programs
wait, and the time from one launch to the next (`mirl_kernels.core.triton.model`). The fit finds these
fractions. The schedulers have one for each kernel, as a kernel's instructions take more than a cycle each.
Dense operators have one fraction of the peaks for each kind (`dense_operators.Kind`).

No GPU was calibrated yet, so the folder `calibrations` does not exist. ``python -m benchmarks.gpu.calibrate``
writes a file for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np

PARTS = ("memory", "cache", "tensor", "issue", "waiting")
TOTAL, EACH, SHARE = 0.15, 0.3, 0.8  # a fit is accepted within so much of the total, and of so many launches
FOLDER = Path(__file__).parent / "calibrations"
_SHARED = ("memory", "cache", "tensor", "waiting")  # parts whose fraction is the same for all kernels
_START = {
    "launch": 1.5e-6,
    "memory": 0.8,
    "cache": 0.6,
    "tensor": 0.6,
    "waiting": 1.0,
    "issue": 0.5,
    "dense": 0.5,
}
_FRACTION = 0.02, 2.0  # least and most: a data sheet may promise too little, but not by more
_LAUNCH = 1e-7, 1e-4  # seconds, likewise
_OUTLIER = 0.2  # logarithm of measured / predicted beyond which a row pulls no harder
_TRUST = 1e-3  # how much a constant that decides nothing is held where it starts
_FINEST = 2e-3  # logarithm of the last step of the search
_DECISIVE = 3  # rows that a part must be the busiest in before its fraction counts as found


@dataclass(frozen=True)
class Row:
    """Hold a launch that was timed, and what the model says of it.

    Attributes:
        kernel: Name of the kernel.
        measured: Seconds from this launch to the next.
        parts: Seconds of each of `PARTS` at its peak.
    """

    kernel: str
    measured: float
    parts: tuple[float, ...]


@dataclass(frozen=True)
class DenseRow:
    """Hold a step that dense operators did, and what the model says of it.

    Attributes:
        step: Name of the step.
        measured: Seconds.
        launches: The number of operators.
        kinds: Seconds at the peaks, by kind of operator.
    """

    step: str
    measured: float
    launches: int
    kinds: Mapping[str, float]


@dataclass(frozen=True)
class Calibration:
    """Hold the constants that were fitted for a GPU.

    Attributes:
        gpu: The GPU, one of `mirl_kernels.core.triton.model.GPUS`.
        launch: Seconds from one launch to the next.
        memory: Fraction of the memory's peak that is reached.
        cache: Fraction of the cache's.
        tensor: Fraction of the tensor cores'.
        waiting: `model.LATENCY` over the time that a program waits.
        issue: Fraction of the schedulers' peak, by kernel.
        dense: Fraction of the peaks that dense operators reach, by kind.
        guessed: Names of constants that the launches do not determine; they are where the search began.
        measured: Date, and the versions that were measured with.
    """

    gpu: str
    launch: float
    memory: float
    cache: float
    tensor: float
    waiting: float
    issue: Mapping[str, float]
    dense: Mapping[str, float] = field(default_factory=dict)
    guessed: tuple[str, ...] = ()
    measured: str = ""

    def seconds(self, kernel: str, parts: Sequence[float]) -> float:
        """Return how long a launch takes.

        Args:
            kernel: Name of the kernel. One that was not timed gets the median fraction of the others.
            parts: Seconds of each of `PARTS` at its peak.
        """
        issue = self.issue.get(kernel) or float(np.median(list(self.issue.values())))
        fractions = self.memory, self.cache, self.tensor, issue, self.waiting
        return max(part / fraction for part, fraction in zip(parts, fractions, strict=True)) + self.launch


@dataclass(frozen=True)
class Group:
    """Compare the launches of one kernel with their prediction.

    Attributes:
        kernel: Name of the kernel.
        launches: Their number.
        measured: Seconds of all.
        predicted: Seconds of all.
        near: How many are within `EACH` of their prediction.
    """

    kernel: str
    launches: int
    measured: float
    predicted: float
    near: int


@dataclass(frozen=True)
class Check:
    """Hold how well a calibration predicts launches that it was not fitted to.

    Attributes:
        groups: One for each kernel, the slowest first.
    """

    groups: tuple[Group, ...]

    @property
    def total(self) -> float:
        """Return predicted over measured seconds of all launches."""
        return sum(g.predicted for g in self.groups) / sum(g.measured for g in self.groups)

    @property
    def near(self) -> float:
        """Return the share of launches that are within `EACH` of their prediction."""
        return sum(g.near for g in self.groups) / sum(g.launches for g in self.groups)

    @property
    def accepted(self) -> bool:
        """Return whether the total is within `TOTAL`, and `SHARE` of the launches within `EACH`."""
        return abs(self.total - 1) <= TOTAL and self.near >= SHARE


def check(calibration: Calibration, rows: Sequence[Row]) -> Check:
    """Compare a calibration with launches; there must be some."""
    groups = []
    for kernel, each in groupby(sorted(rows, key=attrgetter("kernel")), attrgetter("kernel")):
        of_kernel = list(each)
        predicted = [calibration.seconds(kernel, row.parts) for row in of_kernel]
        near = sum(abs(p / row.measured - 1) <= EACH for p, row in zip(predicted, of_kernel, strict=True))
        measured = sum(row.measured for row in of_kernel)
        groups.append(Group(kernel, len(of_kernel), measured, sum(predicted), near))
    return Check(tuple(sorted(groups, key=attrgetter("measured"), reverse=True)))


def fit(
    gpu: str,
    rows: Sequence[Row],
    dense: Sequence[DenseRow] = (),
    start: Mapping[str, float] | None = None,
    measured: str = "",
) -> Calibration:
    """Fit the constants of a GPU.

    The search is by coordinates, in logarithms, from three places; a few launches that the model does not
    explain pull no harder than those that it nearly does.

    Args:
        gpu: See `Calibration`.
        rows: The launches.
        dense: The dense steps.
        start: Constants that were measured by themselves, such as the bandwidth of a copy: where the search
            begins, and where a constant remains that decides nothing.
        measured: See `Calibration`.

    Raises:
        ValueError: If there are fewer launches than constants.
    """
    kernels = sorted({row.kernel for row in rows})
    names = ["launch", *_SHARED, *kernels]
    if len(rows) <= len(names):
        raise ValueError(f"{len(rows)} launches were timed; expected more than the {len(names)} constants")
    begin = _START | dict(start or {})
    parts = np.array([row.parts for row in rows])
    index = np.array([kernels.index(row.kernel) for row in rows])
    shared = [PARTS.index(part) for part in _SHARED]

    def stretched(constants: np.ndarray) -> np.ndarray:
        fractions = np.empty_like(parts)
        fractions[:, shared] = constants[1 : 1 + len(shared)]
        fractions[:, PARTS.index("issue")] = constants[1 + len(shared) :][index]
        return parts / fractions

    def times(constants: np.ndarray) -> np.ndarray:
        return np.asarray(stretched(constants).max(1) + constants[0])

    seconds = np.array([row.measured for row in rows])
    starts = [
        np.array([begin["launch"], *(begin[part] for part in _SHARED), *[issue] * len(kernels)])
        for issue in (begin["issue"], begin["issue"] / 2, min(1.0, begin["issue"] * 2))
    ]
    bounds = [_LAUNCH, *[_FRACTION] * (len(names) - 1)]
    best, _ = min((_search(times, seconds, at, bounds) for at in starts), key=lambda found: found[1])
    busiest = stretched(best).argmax(1)
    decided = {part: int((busiest == PARTS.index(part)).sum()) for part in _SHARED}
    issuing = busiest == PARTS.index("issue")
    decided |= {kernel: int((issuing & (index == i)).sum()) for i, kernel in enumerate(kernels)}
    found = dict(zip(names, map(float, best), strict=True))
    return Calibration(
        gpu=gpu,
        **{name: found[name] for name in ("launch", *_SHARED)},
        issue={kernel: found[kernel] for kernel in kernels},
        dense=_fit_dense(dense, found["launch"]),
        guessed=tuple(name for name, count in decided.items() if count < _DECISIVE),
        measured=measured,
    )


def _fit_dense(rows: Sequence[DenseRow], launch: float) -> dict[str, float]:
    """Return the fraction of the peaks that each kind of dense operator reaches."""
    kinds = sorted({kind for row in rows for kind in row.kinds})
    if len(rows) <= len(kinds):
        return {}
    ideal = np.array([[row.kinds.get(kind, 0.0) for kind in kinds] for row in rows])
    gaps = np.array([row.launches * launch for row in rows])
    seconds = np.array([row.measured for row in rows])
    begin, bounds = np.full(len(kinds), _START["dense"]), [_FRACTION] * len(kinds)
    best, _ = _search(lambda at: np.asarray((ideal / at).sum(1) + gaps), seconds, begin, bounds)
    return dict(zip(kinds, map(float, best), strict=True))


def _search(
    times: Callable[[np.ndarray], np.ndarray],
    measured: np.ndarray,
    start: np.ndarray,
    bounds: Sequence[tuple[float, float]],
) -> tuple[np.ndarray, float]:
    """Return the constants with the least misfit, each within its bounds, and the misfit.

    A row weighs as the root of its time does, so that neither the many short launches nor the few long ones
    decide alone.
    """
    weight = np.sqrt(measured) / np.sqrt(measured).sum()
    low, high = np.log(bounds).T
    at = begin = np.log(start).clip(low, high)

    def misfit(at: np.ndarray) -> float:
        off = np.abs(np.log(times(np.exp(at)) / measured)) / _OUTLIER
        huber = np.where(off < 1, off**2 / 2, off - 0.5)
        return float((weight * huber).sum() + _TRUST * ((at - begin) ** 2).mean())

    least, step = misfit(at), math.log(2)
    while step > _FINEST:
        before = least
        for i in range(len(at)):
            for move in (step, -step):
                tried = at.copy()
                tried[i] = min(max(at[i] + move, low[i]), high[i])
                if (value := misfit(tried)) < least:
                    at, least = tried, value
                    break
        if before - least < 1e-4 * before:
            step /= 2
    return np.exp(at), least


def read_calibration(gpu: str, folder: Path = FOLDER) -> Calibration | None:
    """Return the calibration of a GPU, or None if there is none that was accepted.

    Args:
        gpu: One of `mirl_kernels.core.triton.model.GPUS`.
        folder: Where calibrations lie.
    """
    path = folder / f"{file_stem(gpu)}.json"
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if not stored["accepted"]:
        return None
    return Calibration(**stored["calibration"] | {"guessed": tuple(stored["calibration"]["guessed"])})


def to_json(calibration: Calibration, tested: Check | None) -> str:
    """Return the content of a calibration's file; without a test it is not accepted."""
    content = {
        "accepted": tested is not None and tested.accepted,
        "calibration": asdict(calibration),
        "test": None
        if tested is None
        else {"total": tested.total, "near": tested.near, "kernels": [asdict(g) for g in tested.groups]},
    }
    return json.dumps(content, indent=1) + "\n"


def file_stem(gpu: str) -> str:
    """Return the name of a GPU as files have it.

    >>> file_stem("H100 SXM")
    'h100-sxm'
    """
    return gpu.lower().replace(" ", "-")
