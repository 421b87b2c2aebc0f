"""Measure the prices of a machine once, and keep them in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path

from mirl_kernels.core import cpu
from mirl_sparse.files import write_whole
from mirl_sparse.performance import cost, samples
from mirl_sparse.performance.cost import CostModel
from mirl_sparse.performance.samples import Sample

_RUNS = 7
# Of one processor: a measurement that works less waits for others most of the time (0.93 to 1.2 where nothing
# else runs).
_BUSY = 0.75


@torch.no_grad()
def measure(ops: Iterable[Sample] | None = None) -> CostModel:
    """Time ops and fit prices to them, none negative, by relative errors.

    Args:
        ops: Ops that are timed; by default `samples.samples`, some sixty small ops, which take a few seconds.

    Returns:
        The cost model, `rough` if this machine is busy with other work.
    """
    from scipy.optimize import nnls  # its import takes a while

    quantities, seconds = [], []
    began, worked = time.perf_counter(), time.process_time()
    for counts, run in samples.samples() if ops is None else ops:
        quantities.append(counts)
        seconds.append(_fastest(run))
    rough = time.process_time() - worked < _BUSY * (time.perf_counter() - began)
    names = sorted({name for counts in quantities for name in counts})
    counted = np.array([[counts[name] for name in names] for counts in quantities])
    matrix = counted / np.array(seconds)[:, None]
    scale = matrix.max(0)
    prices, _ = nnls(matrix / scale, np.ones(len(seconds)), maxiter=100 * len(names))
    return CostModel(dict(zip(names, (prices / scale).tolist(), strict=True)), rough)


def _fastest(run: Callable[[], object]) -> float:
    """Return the seconds of the fastest call after the first: other processes use this machine as well."""
    run()
    times = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


class PriceStore:
    """Keep the prices of machines in a JSON file, and in memory.

    Prices of a busy machine are kept nowhere: the next call measures again.

    Args:
        file: The JSON file; it is made at the first measurement. A broken one is written anew. None keeps
            prices in memory alone.
        measure: Measures this machine where its prices are not known.
    """

    def __init__(self, file: Path | None, measure: Callable[[], CostModel] = measure) -> None:
        self._file, self._measure = file, measure
        self._models: dict[str, CostModel] = {}

    def model(self, machine: str) -> CostModel:
        """Return the cost model of a machine.

        Args:
            machine: Machine that the prices hold for, as `this_machine` says it.
        """
        if machine in self._models:
            return self._models[machine]
        known = self._read()
        if machine in known:
            model = CostModel(known[machine])
        else:
            model = self._measure()
            if model.rough:
                warnings.warn(
                    "this machine is busy with other work, so the costs measured on it are rough: they are"
                    " measured again next time",
                    stacklevel=3,
                )
                return model
            known[machine] = model.prices
            if self._file is not None:
                with contextlib.suppress(OSError):  # then it is measured again by the next process
                    write_whole(self._file, json.dumps(known).encode())
        self._models[machine] = model
        return model

    def _read(self) -> dict[str, dict[str, float]]:
        if self._file is None:
            return {}
        try:
            known = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def cost_model(store: PriceStore | None = None) -> CostModel:
    """Return the cost model of this machine, measured now if its prices are not known.

    Args:
        store: File of the prices; by default one in the user's cache.
    """
    return (store or _store(_cache_file())).model(this_machine())


def this_machine() -> str:
    """Return what prices hold for: this computer, its threads, and the version of the kernels."""
    kernels = Path(cpu.__file__).parents[2]
    sources = [
        *(Path(str(module.__file__)) for module in (cost, samples)),
        Path(__file__),
        *sorted(kernels.rglob("*.py")),
        *(library for folder in cpu.__path__ for library in Path(folder).glob("*.so")),
    ]
    build = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    return f"{platform.node()} {cpu.isa()} {torch.get_num_threads()} {torch.__version__} {build}"


@cache
def _store(file: Path | None) -> PriceStore:
    return PriceStore(file)


def _cache_file() -> Path | None:
    """Return the file of this user's prices, None for a user without a home folder."""
    try:
        return user_cache_path("mirl-sparse") / "prices.json"
    except (RuntimeError, KeyError):
        return None
