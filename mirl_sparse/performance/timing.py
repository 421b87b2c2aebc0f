"""Time several ways to restore one image in turns, after each of them has proved right.

Runs are interleaved: a machine that is slow for some seconds is slow for every contender.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Call = Callable[[], Tensor]

_TURN = 0.02  # seconds that a turn takes at least: a fast contender is called several times
_FAST = 0.2  # seconds of a call below which waking threads and caches up would count in its time
_RESAMPLED = 1000


@dataclass(frozen=True)
class Ratio:
    """Hold the ratio of the times of two contenders.

    Attributes:
        ratio: Median of the ratios by round; 2.0 means twice as fast.
        low: Lower end of the 95% confidence interval of the median.
        high: Upper end of that interval.
    """

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Speedup(Ratio):
    """Hold the ratio of a dense contender's time to a sparse one's.

    Attributes:
        over: Name of the dense contender.
    """

    over: str


@dataclass(frozen=True)
class ContenderRow:
    """Hold the times of one contender, in seconds of one call.

    Attributes:
        median: Median of all rounds.
        p20: 20% percentile.
        p80: 80% percentile.
        runs: Number of rounds.
        times: Seconds by round.
        first_call: Seconds until the first result, building the contender included.
        second_call: Seconds of the first call after that and after settling.
        difference: Largest difference from the expected result, relative to its largest value where that is
            above 1.
        psnr: PSNR of the result against the expected one, for values from 0 to 1, in dB, at most 200.
        speedup: Speed-up over the strongest dense contender; None for dense contenders.
        over_default: Speed-up over what PyTorch does by default; None for dense contenders.
    """

    median: float
    p20: float
    p80: float
    runs: int
    times: tuple[float, ...]
    first_call: float
    second_call: float
    difference: float
    psnr: float
    speedup: Speedup | None = None
    over_default: Speedup | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it: dense contenders have no key for a speed-up."""
        row = {key: value for key, value in asdict(self).items() if value is not None}
        return row | {"times": list(self.times)}


@dataclass(frozen=True)
class TurnsResult:
    """Hold the result of contenders that were timed in turns.

    Attributes:
        rows: Row of each timed contender, by name.
        left_out: Why the others were not timed, by name.
        strongest_dense: Name of the dense contender with the smallest median.
    """

    rows: dict[str, ContenderRow]
    left_out: dict[str, str]
    strongest_dense: str

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        return {
            "rows": {name: row.to_dict() for name, row in self.rows.items()},
            "left_out": dict(self.left_out),
            "strongest_dense": self.strongest_dense,
        }


@dataclass
class _Contender:
    """Hold one way to restore the image: its call, how often a turn repeats it, and how it proved itself."""

    call: Call
    repeats: int
    first_call: float
    second_call: float
    difference: float
    psnr: float


class Turns:
    """Time ways to restore one image in turns.

    A contender that restores something wrong is not timed.

    Attributes:
        settling: Untimed calls of each contender after its first, where later calls are what counts.
        left_out: Why contenders are not timed, by name.
        times: Seconds of one call by round, for each contender.
    """

    settling = 0

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}
        self.times: dict[str, list[float]] = {}
        self._contenders: dict[str, _Contender] = {}

    def seconds(self, call: Call, repeats: int = 1) -> float:
        """Return how many seconds ``repeats`` calls take together."""
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return time.perf_counter() - begin

    def admit(self, name: str, make: Callable[[], Call], expected: Tensor, tolerance: float) -> None:
        """Admit a contender if its result is right; otherwise note why in ``left_out``.

        Args:
            name: Name of the contender.
            make: Builds the call; its time is part of the first call's.
            expected: The right result.
            tolerance: Largest difference that is right, relative to the largest expected value where that is
                above 1.
        """
        begin = time.perf_counter()
        call = make()
        result = call().cpu()
        first = time.perf_counter() - begin
        off = result - expected.cpu()
        difference = off.abs().max().item() / max(1.0, expected.abs().max().item())
        if not difference <= tolerance:
            self.left_out[name] = (
                f"differs from the expected result by {difference:.1e}, at most {tolerance:.0e} is right"
            )
            return
        for _ in range(self.settling):
            call()
        second = self.seconds(call)
        repeats = max(1, round(_TURN / second))
        psnr = -10 * math.log10(max(1e-20, off.square().mean().item()))
        self._contenders[name] = _Contender(call, repeats, first, second, difference, psnr)
        self.times[name] = []

    def ready(self, name: str) -> None:
        """Wake threads and caches up before a contender is timed, if its calls are short."""
        if self._contenders[name].second_call < _FAST:
            self._contenders[name].call()

    @torch.no_grad()
    def turn(self, name: str) -> None:
        """Time one contender."""
        self.ready(name)
        contender = self._contenders[name]
        self.times[name].append(self.seconds(contender.call, contender.repeats) / contender.repeats)

    def entered(self) -> list[str]:
        """Return the contenders of the next round, in the order of their turns."""
        return list(self.times)

    def round(self) -> None:
        """Time each contender once."""
        for name in self.entered():
            self.turn(name)

    def compared(self, dense: Collection[str]) -> TurnsResult:
        """Compare the sparse contenders with the dense ones.

        Args:
            dense: Names of dense contenders; the first timed one is what PyTorch does by default. All others
                are sparse.

        Returns:
            The rows; each sparse one with its speed-ups over the strongest dense contender and over the
            default.
        """
        percentiles = {
            name: np.percentile(times, (20, 50, 80)).tolist() for name, times in self.times.items()
        }
        timed_dense = [name for name in self.times if name in dense]
        default, strongest = timed_dense[0], min(timed_dense, key=lambda name: percentiles[name][1])
        rows = {}
        for name, times in self.times.items():
            speedup = over_default = None
            if name not in timed_dense:
                speedup, over_default = (self._speedup(name, over) for over in (strongest, default))
            p20, median, p80 = percentiles[name]
            contender = self._contenders[name]
            rows[name] = ContenderRow(
                median=median,
                p20=p20,
                p80=p80,
                runs=len(times),
                times=tuple(times),
                first_call=contender.first_call,
                second_call=contender.second_call,
                difference=contender.difference,
                psnr=contender.psnr,
                speedup=speedup,
                over_default=over_default,
            )
        return TurnsResult(rows, self.left_out, strongest)

    def _speedup(self, name: str, over: str) -> Speedup:
        return Speedup(**asdict(ratio(self.times[over], self.times[name])), over=over)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """Return how many times faster one contender is than another.

    The interval is a bootstrap of the median (Efron 1979): it holds the median of endlessly many rounds with
    95% certainty. With few rounds it is hardly more than their range.

    Args:
        slow: Seconds of the first contender by round.
        fast: Seconds of the second contender in the same rounds; rounds that only one of them has are
            ignored.
    """
    rounds = min(len(slow), len(fast))
    ratios = np.array(slow[:rounds]) / np.array(fast[:rounds])
    drawn = np.random.default_rng(0).integers(rounds, size=(_RESAMPLED, rounds))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5)).tolist()
    return Ratio(float(np.median(ratios)), low, high)
