"""Dense against sparse in one process: every dense configuration at its best, runs interleaved.

The dense network is the ticket's own, zeros included, as it would be run without this package. Each
contender's result is first compared with what it should be: what is wrong is not timed.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from mirl_kernels.core import cpu
from mirl_kernels.core.roofline import measure
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.errors import UserError
from mirl_sparse.performance.peers import COMPILED, DENSE, ENGINES, STOCK, Call, quiet
from mirl_sparse.runtime.allocator import Allocator
from mirl_sparse.runtime.cpu import Engine
from mirl_sparse.runtime.restorer import SparseRestorer

# Largest difference from the expected result, relative to its largest value where that exceeds 1. Dense networks are given more:
# their float32 sums over all pixels of a large image lose digits that the sparse kernels, which sum in float64, keep;
# bfloat16 has three digits.
TOLERANCE, DENSE_TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 1e-2, 1e-1
SPARSE = "sparse cpu"
_TURN = 0.02  # seconds that a turn takes at least: a fast contender is called several times
_FAST = 0.2  # seconds of a call below which waking threads and caches up would count in its time
_PAUSE = 0.05  # seconds between turns: the threads of the one before wait for work a while, and would be in the way
_TRIAL = 3  # rounds that every dense run is in
_FAR = 1.5  # times the strongest dense run's time: what takes longer in these cannot become it, and leaves
_RESAMPLED = 1000


class Candidate(NamedTuple):
    """A sparse way to run a network, and the result of the network that it stands for."""

    module: Callable[[Tensor], Tensor]
    expected: Tensor


class Turns:
    """Ways to restore one image that restore it right, timed in turns.

    What restored something else than it should is not timed, and ``left_out`` says why; ``times`` are the seconds of each of
    the others, by round.
    """

    settling = 0  # untimed calls of each after its first, if later ones are what counts

    def __init__(self) -> None:
        self.left_out: dict[str, str] = {}
        self.times: dict[str, list[float]] = {}
        self._calls: dict[str, Call] = {}
        self._first: dict[str, dict[str, float]] = {}  # of each: seconds of the first calls, difference
        self._repeats: dict[str, int] = {}

    def seconds(self, call: Call, repeats: int = 1) -> float:
        """How long so many calls take."""
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return time.perf_counter() - begin

    def admit(self, name: str, make: Callable[[], Call], expected: Tensor, tolerance: float) -> None:
        """Take part in the comparison, if the result is right; ``tolerance`` as TOLERANCE. What it takes to ``make`` the call is
        part of its first."""
        begin = time.perf_counter()
        call = make()
        result = call().cpu()
        first = time.perf_counter() - begin
        difference = (result - expected.cpu()).abs().max().item() / max(1.0, expected.abs().max().item())
        if not difference <= tolerance:
            self.left_out[name] = (
                f"differs from the expected result by {difference:.1e}, at most {tolerance:.0e} is right"
            )
            return
        for _ in range(self.settling):
            call()
        second = self.seconds(call)
        self._repeats[name] = max(1, round(_TURN / second))
        self._calls[name], self.times[name] = call, []
        self._first[name] = {"first_call": first, "second_call": second, "difference": difference}

    def ready(self, name: str) -> None:
        """What comes before a contender is timed: a call that wakes threads and caches up."""
        if self._first[name]["second_call"] < _FAST:
            self._calls[name]()

    @torch.no_grad()
    def turn(self, name: str) -> None:
        """Time one contender."""
        self.ready(name)
        repeats = self._repeats[name]
        self.times[name].append(self.seconds(self._calls[name], repeats) / repeats)

    def entered(self) -> list[str]:
        """Who is in the next round."""
        return list(self.times)

    def round(self) -> None:
        """A turn of each."""
        for name in self.entered():
            self.turn(name)

    def compared(self, dense: Collection[str]) -> dict[str, Any]:
        """``rows``: per contender its seconds by round (``times``), their median, 20% and 80% percentiles and number (``runs``), those until
        its first result and of a later call, and its difference from what is expected; for sparse ones, those that are not among
        ``dense``, how much faster they are than the strongest dense run (``speedup``) and than what one has by default, the
        first (``over_default``), both as `ratio`; ``strongest_dense`` and what is ``left_out``."""
        rows: dict[str, dict[str, Any]] = {}
        for name, values in self.times.items():
            p20, median, p80 = np.percentile(values, (20, 50, 80)).tolist()
            rows[name] = {
                "median": median, "p20": p20, "p80": p80, "runs": len(values), "times": values, **self._first[name],
            }  # fmt: skip
        found = [name for name in rows if name in dense]
        strongest = min(found, key=lambda n: rows[n]["median"])
        for name in rows.keys() - set(found):
            for key, slow in (("speedup", strongest), ("over_default", found[0])):
                rows[name][key] = {"over": slow, **ratio(self.times[slow], self.times[name])}
        return {"rows": rows, "left_out": self.left_out, "strongest_dense": strongest}


class Comparison(Turns):
    """On the CPU: ``dense`` are names of `peers.DENSE`, each run with ``network``, whose result should be ``expected``; ``sparse`` is
    whatever is compared with them. The allocator is tuned for as long as the process lives.
    """

    @torch.no_grad()
    def __init__(
        self,
        network: nn.Module,
        expected: Tensor,
        sparse: Mapping[str, Candidate],
        image: Tensor,
        dense: Collection[str] = tuple(DENSE),
    ) -> None:
        super().__init__()
        self.shape = list(image.shape)
        self._allocator = Allocator()
        self._tuned = self._allocator.tune()
        for name in dense:
            if name == STOCK and not self._tuned:
                self.left_out[name] = (
                    "the allocator cannot be tuned here: the other dense runs have it as it comes"
                )
                continue
            tolerance = BFLOAT16_TOLERANCE if "bfloat16" in name else DENSE_TOLERANCE
            if name == STOCK:
                self._allocator.untune()
            try:
                with quiet():
                    self.admit(name, partial(DENSE[name], network, image), expected, tolerance)
            except Exception as error:  # not installed, no compiler, an operator that it does not know
                if name not in COMPILED + ENGINES:
                    raise
                self.left_out[name] = (
                    "not installed: pip install 'mirl-sparse[peers]'"
                    if isinstance(error, ImportError)
                    else f"{type(error).__name__}: {error}".splitlines()[0]
                )
            if name == STOCK:
                self._allocator.tune()
        for name, (module, wanted) in sparse.items():
            self.admit(name, partial(partial, module, image), wanted, TOLERANCE)
        self.dense = [name for name in self._calls if name in DENSE]
        self.sparse = [name for name in self._calls if name not in DENSE]

    def entered(self) -> list[str]:
        """The order of turns: the other sparse contenders, the dense runs, and right after the strongest of these the first sparse one.
        After `_TRIAL` rounds, only dense runs that may be the strongest stay, and PyTorch by default."""
        default, *others = self.dense
        if len(self.times[default]) < _TRIAL:
            return [*self.sparse[1:], *self.dense, *self.sparse[:1]]
        trial = {name: float(np.median(self.times[name][:_TRIAL])) for name in self.dense}
        near = sorted((n for n in others if trial[n] <= _FAR * min(trial.values())), key=lambda n: -trial[n])
        return [*self.sparse[1:], default, *near, *self.sparse[:1]]

    @torch.no_grad()
    def run(self, name: str) -> int:
        """Call a contender once, or several times if it is fast; returns how often."""
        for _ in range(self._repeats[name]):
            self._calls[name]()
        return self._repeats[name]

    def ready(self, name: str) -> None:
        """A pause, the contender's allocator, and a call that wakes threads and caches up."""
        time.sleep(_PAUSE)
        if name == STOCK:
            self._allocator.untune()
        super().ready(name)

    def turn(self, name: str) -> None:
        super().turn(name)
        if name == STOCK:
            self._allocator.tune()
            self.run(name)  # touches the memory that the others find

    def result(self) -> dict[str, Any]:
        """`compared`, and what it all was measured on."""
        allocator = "tuned" if self._tuned else "default"
        return {"shape": self.shape, **environment(), "allocator": allocator, **self.compared(self.dense)}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How often one contender is done in the time of another, from the seconds that both took in the same rounds: the median of
    the ratios by round, as ``ratio``; ``low`` and ``high`` hold that of endlessly many rounds with 95% certainty (bootstrap:
    Efron 1979); of few rounds, they are hardly more than the range. A machine that is slow for some seconds is so for both."""
    rounds = min(len(slow), len(fast))
    ratios = np.array(slow[:rounds]) / np.array(fast[:rounds])
    drawn = np.random.default_rng(0).integers(rounds, size=(_RESAMPLED, rounds))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), (2.5, 97.5)).tolist()
    return {"ratio": float(np.median(ratios)), "low": low, "high": high}


def processor() -> str:
    """The processor's name, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine()
    )


def environment() -> dict[str, Any]:
    """What a time depends on beside the program."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "isa": cpu.isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


class _DepthwiseByTaps(TorchFunctionMode):
    """Depthwise convolutions as the sum over their taps: in float64 PyTorch runs one convolution per channel, which is most of a
    network's time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_conv2d if func is torch.conv2d else func)(*args, **kwargs or {})


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
            groups: int = 1) -> Tensor:  # fmt: skip
    plain = {*_pair(stride), *_pair(dilation)} == {1} and not isinstance(padding, str)
    if groups == 1 or not groups == x.shape[1] == weight.shape[0] or not plain:
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    rows, columns = _pair(padding)
    x = nn.functional.pad(x.contiguous(), (columns, columns, rows, rows))
    height, width = (side - taps + 1 for side, taps in zip(x.shape[2:], weight.shape[2:], strict=True))
    result = x.new_zeros(*x.shape[:2], height, width)
    few = max(1, 2**15 // (height * width))  # channels that caches hold
    for some, of, by in zip(result.split(few, 1), x.split(few, 1), weight.split(few), strict=True):
        for i, j in product(*map(range, weight.shape[2:])):
            some.addcmul_(of[..., i : i + height, j : j + width], by[:, :, i, j, None])
    return result if bias is None else result + bias[:, None, None]


@torch.no_grad()
def expected(network: nn.Module, image: Tensor) -> Tensor:
    """What a network should restore: its result in float64."""
    with _DepthwiseByTaps():
        result: Tensor = deepcopy(network).double()(image.double())
    return result


def bench(
    network: PromptIR, image: Tensor, runs: int = 7, dense: Collection[str] = tuple(DENSE)
) -> dict[str, Any]:
    """Compare `SparseRestorer` of a ticket's network with the dense ones named, on ``image`` (B, 3, H, W), H and W multiples of
    8: `Comparison.result` after so many rounds, and the sparse one's `profile`. UserError when it restores something else."""
    right = expected(network, image)
    comparison = Comparison(
        network, right, {SPARSE: Candidate(SparseRestorer(network, "cpu"), right)}, image, dense
    )
    if SPARSE not in comparison.sparse:
        raise UserError(f"{SPARSE} {comparison.left_out[SPARSE]}, so nothing is timed")
    for _ in range(runs):
        comparison.round()
    return comparison.result() | {"profile": profile(network, image, runs)}


@torch.no_grad()
def profile(network: PromptIR, image: Tensor, runs: int = 7) -> dict[str, Any]:
    """Where the sparse network's time goes, against the roofline of this machine as measured just now.

    Per step the median seconds of ``runs``, its multiply-adds by surviving weights, the bytes that a fused
    schedule cannot help moving, the seconds that these two allow at best, and the fraction of that limit
    that is reached; and the same in total.
    """
    machine, engine = measure(), Engine(network)
    engine(image)
    measured = [engine.profile(image) for _ in range(runs)]
    rows = []
    for step in zip(*measured, strict=True):
        name, op, macs, moved, _ = step[0]
        seconds, limit = float(np.median([s.seconds for s in step])), machine.limit(macs, moved)
        rows.append(
            {"name": name, "op": op, "seconds": seconds, "macs": macs, "bytes": moved, "limit": limit}
        )
    total = {k: sum(row[k] for row in rows) for k in ("seconds", "macs", "bytes", "limit")}
    return {"gflops_peak": machine.flops / 1e9, "gbytes_peak": machine.bandwidth / 1e9, "steps": rows,
            **total, "fraction": total["limit"] / total["seconds"]}  # fmt: skip
