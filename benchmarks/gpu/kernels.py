"""Compile and time the kernels one by one, beside what is predicted for them.

python -m benchmarks.gpu.kernels    # restores one image, for tools that watch a process
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.setting import Setting
from mirl_kernels.core.triton import Launch, Tile, Tuner, count_work
from mirl_sparse.performance.gpu_bench import known_gpu
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.runtime.triton_network import launches
from mirl_sparse.runtime.tuning import Tuning

_SHAPES = (1, 256), (1, 1024), (8, 256)  # images, side
_TILES = 3  # of each kernel that are compiled ahead: the first ones, which may spill
_SLOWEST, _SWEPT = 20, 10
_METRICS = (
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed.avg.per_cycle_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sector_hit_rate.pct",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)


def compile_all(setting: Setting) -> Iterator[Figure]:
    """Yield how long it takes to compile what the other stages launch, on all processors."""
    if setting.rehearsal:
        yield Figure("kernels", None, "", {"why": "the interpreter compiles nothing"})
        return
    from mirl_kernels.core.triton.offline import specialised

    packed, workspace = setting.packed()
    distinct: dict[Any, Launch] = {}
    for batch, side in _SHAPES:
        shape = setting.image(batch, side).shape
        steps = launches(packed, (shape[0], *shape[2:]), workspace)
        for launch in (launch for step in steps.values() for launch in step):
            for each in (launch, *launch.alternatives)[:_TILES]:
                distinct.setdefault(specialised(each), each)
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failures = [reason for reason in pool.map(_compile, distinct.values()) if reason]
    yield Figure("kernels", float(len(distinct)), "", {"failures": failures[:20]})
    yield Figure("seconds to compile all", time.perf_counter() - began, "s", {"processors": os.cpu_count()})


def _warmed(launch: Launch) -> Any:
    """Return the kernel as it is compiled for the GPU at hand."""
    options = launch.tile.options(torch.version.hip is not None)
    return launch.kernel.warmup(grid=launch.grid, **launch.arguments, **options)


def _compile(launch: Launch) -> str | None:
    try:
        _warmed(launch)
    except Exception as error:  # of whatever kind: the stages that launch the kernel tell more
        return f"{launch.kernel.__name__} in {launch.tile}: {type(error).__name__}: {error}"[:200]
    return None


@dataclass
class _Timer(Tuner):
    """Time each launch in the tile that it has, instead of comparing tiles."""

    rows: list[tuple[str, Tile | None, float]] = field(default_factory=list)

    def compare(self, key: str, tiles: Iterable[Tile], run: Callable[[Tile], None]) -> None:
        tile = next(iter(tiles), None)
        self.rows.append((key, tile, float("nan") if tile is None else self.seconds(partial(run, tile))))


def times(setting: Setting) -> Iterator[Figure]:
    """Yield the time of each kernel, of the slowest launches more, and then their predictions."""
    packed, workspace = setting.packed()
    image = setting.image()
    apart = setting.workspace()  # it holds tensors without data afterwards
    steps = launches(packed, (1, *image.shape[2:]), apart)
    launched = [(step, launch) for step, each in steps.items() for launch in each]
    timer = _Timer(setting.seconds, float("inf"))
    with torch.no_grad(), timer.activate():
        packed(image, workspace)
    rows = [
        (step, launch, seconds) for (step, launch), (_, _, seconds) in zip(launched, timer.rows, strict=True)
    ]
    totals: dict[str, list[float]] = defaultdict(list)
    for _, launch, seconds in rows:
        totals[launch.kernel.__name__].append(seconds)
    for name, each in sorted(totals.items(), key=lambda item: -sum(item[1])):
        yield Figure(name, sum(each) * 1e6, "us", {"launches": len(each)})
    yield Figure("all launches", sum(seconds for *_, seconds in rows) * 1e6, "us", {"launches": len(rows)})
    slowest = sorted(rows, key=lambda row: -row[2])[:_SLOWEST]
    for step, launch, seconds in slowest:
        work = count_work(launch)
        facts: dict[str, Any] = {
            "GB/s": (work.read + work.written) / seconds / 1e9,
            "TFLOP/s": 2 * work.macs / seconds / 1e12,
            "grid": list(launch.grid),
        }
        if not setting.rehearsal:
            facts |= _occupancy(launch)
        yield Figure(f"{step} {launch.kernel.__name__}", seconds * 1e6, "us", facts)
    if not setting.rehearsal:
        yield from _predictions(setting, rows)


def _occupancy(launch: Launch) -> dict[str, Any]:
    from mirl_kernels.core.triton.offline import RESIDENCY, resident_programs

    compiled = _warmed(launch)
    compiled._init_handles()
    facts = {"registers": compiled.n_regs, "spilled": compiled.n_spills}
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if architecture in RESIDENCY:
        used = compiled.n_regs, compiled.metadata.shared, launch.tile.warps
        facts["resident programs"] = resident_programs(architecture, *used)
    return facts


def _predictions(setting: Setting, rows: list[tuple[str, Launch, float]]) -> Iterator[Figure]:
    from mirl_kernels.core.triton.model import GPUS, predict
    from mirl_kernels.core.triton.offline import compile_ahead

    known = known_gpu(setting.name)
    if known is None:
        yield Figure("prediction", None, "us", {"why": f"{setting.name} is not known"})
        return
    gpu, near = GPUS[known], 0
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    compile_ahead(gpu.architecture, [launch for _, launch, _ in rows])
    for _, launch, seconds in rows:
        predicted = predict(launch, gpu).seconds()
        total = totals[launch.kernel.__name__]
        total[0], total[1] = total[0] + predicted, total[1] + seconds
        near += abs(predicted / seconds - 1) <= 0.3
    for name, (predicted, measured) in totals.items():
        yield Figure(f"{name}, predicted", predicted * 1e6, "us", {"measured": measured * 1e6})
    yield Figure("launches within 30% of their prediction", near / len(rows) * 100, "%")


class _Sweep(Tuner):
    """Compare tiles of some kernels only."""

    def __init__(self, seconds: Callable[[Callable[[], Any]], float], keys: set[str]) -> None:
        super().__init__(seconds, float("inf"))
        self._keys = keys

    def compare(self, key: str, tiles: Iterable[Tile], run: Callable[[Tile], None]) -> None:
        if key in self._keys:
            super().compare(key, tiles, run)


def tiles(setting: Setting) -> Iterator[Figure]:
    """Yield the time of the slowest kernels in each of their tiles."""
    packed, workspace = setting.packed()
    image, timer = setting.image(), _Timer(setting.seconds, float("inf"))
    with torch.no_grad(), timer.activate():
        packed(image, workspace)
    totals: dict[str, float] = defaultdict(float)
    for key, _, seconds in timer.rows:
        totals[key] += seconds
    slowest = sorted(totals, key=lambda key: -totals[key])[:_SWEPT]
    sweep = _Sweep(setting.seconds, set(slowest))
    with torch.no_grad(), sweep.activate():
        packed(image, workspace)
    for key in slowest:
        compared = sorted(sweep.timings.get(key, []), key=lambda each: each[0])
        facts = {"tiles": [[seconds * 1e6, repr(tile)] for seconds, tile in compared], "key": key[:200]}
        yield Figure(key.split()[0], totals[key] * 1e6, "us", facts)


def counters(setting: Setting) -> Iterator[Figure]:
    """Yield what the hardware counts in some kernels, and what a memory checker says of all."""
    this = [sys.executable, "-m", "benchmarks.gpu.kernels"]
    commands = {
        "compute-sanitizer": ["--tool", "memcheck", *this],
        "ncu": [
            *("--clock-control", "none", "--launch-skip", "40", "--launch-count", "40"),
            *("--metrics", ",".join(_METRICS), "--csv", *this),
        ],
    }
    for tool, arguments in commands.items():
        path = shutil.which(tool)
        if path is None or setting.rehearsal:
            yield Figure(tool, None, "", {"why": "not rehearsed" if path else "is not installed"})
            continue
        done = subprocess.run([path, *arguments], capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith(('"', "=="))]
        yield Figure(tool, float(done.returncode), "status", {"said": lines[-250:]})


def main() -> None:
    setting = Setting()
    restorer = SparseRestorer(setting.network.to(setting.device), "triton", tuning=Tuning({}, frozenset()))
    restorer(setting.image(1, 128))
    setting.synchronize()


if __name__ == "__main__":
    main()
