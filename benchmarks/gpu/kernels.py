"""Compile and time the kernels one by one, beside what is predicted for them.

python -m benchmarks.gpu.kernels    # restores one image, for tools that watch a process
"""

from __future__ import annotations

import math
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
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.components import SIDES, all_components
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.prepared import prepared_components
from benchmarks.gpu.setting import Setting
from mirl_kernels.core.triton import Launch, Tile, Tuner, Workspace, count_work
from mirl_sparse.performance.gpu_bench import known_gpu
from mirl_sparse.runtime.program import Step
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.runtime.triton_network import PackedNetwork, launches
from mirl_sparse.runtime.tuning import Tuning

_SHAPES = (1, 256), (1, 128), (1, 1024), (8, 256)  # images, side
_TILES = 3  # of each kernel that are compiled ahead: the first ones, which may spill
_SLOWEST, _SWEPT = 20, 10
_METRICS = (
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__inst_executed.avg.per_cycle_elapsed",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sector_hit_rate.pct",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)


def distinct_launches(
    architecture: str,
    packed: PackedNetwork,
    workspace: Workspace,
    shapes: Iterable[tuple[int, int]] | None = None,
) -> dict[Any, Launch]:
    """Return a launch of each kernel that the stages use, in its first tiles, by what it is compiled for.

    Args:
        architecture: The GPU's, one of `offline.SHARED_MEMORY`.
        packed: The network.
        workspace: Describes the GPU.
        shapes: How many images and their side; by default those of the stages.
    """
    from mirl_kernels.core.triton.offline import specialised

    distinct: dict[Any, Launch] = {}
    for batch, side in shapes or _SHAPES:
        for step in launches(packed, (batch, side, side), workspace).values():
            for each in (each for launch in step for each in (launch, *launch.alternatives)[:_TILES]):
                distinct.setdefault(specialised(architecture, each), each)
    return distinct


def compile_all(setting: Setting) -> Iterator[Figure]:
    """Yield how long it takes to compile what the other stages launch, on all processors."""
    if setting.rehearsal:
        setting.packed()  # which the other stages find
        yield Figure("kernels", None, "", {"why": "the interpreter compiles nothing"})
        return
    from triton import knobs

    packed, workspace = setting.packed()
    distinct = distinct_launches(architecture(), packed, workspace)
    hits: list[bool] = []
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    began = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failures = [reason for reason in pool.map(_compile, distinct.values()) if reason]
    seconds, found = time.perf_counter() - began, sum(hits)
    facts = {"found compiled": found, "compiled here": len(hits) - found, "failures": failures[:20]}
    yield Figure("kernels", float(len(distinct)), "", facts)
    yield Figure("seconds to compile all", seconds, "s", {"processors": os.cpu_count()})


def architecture() -> str:
    """Return the architecture of the GPU, as `offline.SHARED_MEMORY` names it."""
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties().gcnArchName.split(":")[0])
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def _warmed(launch: Launch) -> Any:
    """Return the kernel as it is compiled for the GPU at hand."""
    options = launch.options(torch.version.hip is not None)
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


@dataclass(frozen=True)
class _Timed:
    """A launch that was timed, in the tile that it was made in; of no seconds if it runs in none."""

    step: str
    launch: Launch
    seconds: float | None


def _timed(setting: Setting, image: Tensor) -> list[_Timed]:
    """Return the launches for an image, each with its time."""
    packed, workspace = setting.packed()
    apart = setting.workspace()  # it holds tensors without data afterwards
    steps = launches(packed, (1, *image.shape[2:]), apart)
    launched = [(step, launch) for step, each in steps.items() for launch in each]
    timer = _Timer(setting.seconds, float("inf"))
    with torch.no_grad(), timer.activate():
        packed(image, workspace)
    rows = []
    for (step, launch), (_, tile, seconds) in zip(launched, timer.rows, strict=True):
        made = next((one for one in (launch, *launch.alternatives) if one.tile == tile), launch)
        rows.append(_Timed(step, made, seconds if math.isfinite(seconds) else None))
    return rows


def times(setting: Setting) -> Iterator[Figure]:
    """Yield the time of each kernel, of each launch, of the slowest ones more, and of each dense step."""
    rows = _timed(setting, setting.image(side=SIDES[0]))
    timed = [(row.seconds, row.step, row.launch) for row in rows if row.seconds]
    totals: dict[str, list[float]] = defaultdict(list)
    for seconds, _, launch in timed:
        totals[launch.kernel.__name__].append(seconds)
    for name, each in sorted(totals.items(), key=lambda item: -sum(item[1])):
        yield Figure(name, sum(each) * 1e6, "us", {"launches": len(each)})
    yield from _as_figures(rows, SIDES[0])
    for seconds, step, launch in sorted(timed, key=itemgetter(0), reverse=True)[:_SLOWEST]:
        work = count_work(launch)
        facts: dict[str, Any] = {
            "GB/s": (work.read + work.written) / seconds / 1e9,
            "TFLOP/s": 2 * work.macs / seconds / 1e12,
            "grid": list(launch.grid),
        }
        if not setting.rehearsal:
            facts |= _occupancy(launch)
        yield Figure(f"{step} {launch.kernel.__name__}", seconds * 1e6, "us", facts)
    yield from _dense_steps(setting)
    yield from _model(setting)


def large(setting: Setting) -> Iterator[Figure]:
    """Yield the time of each launch for a large image, which the predictions are tested on."""
    yield from _as_figures(_timed(setting, setting.image(side=SIDES[1])), SIDES[1])


def _as_figures(rows: list[_Timed], side: int) -> Iterator[Figure]:
    """Yield the times of all launches, in microseconds: the sum, and a row for each."""
    each = [
        [r.step, r.launch.kernel.__name__, repr(r.launch.tile), r.seconds and r.seconds * 1e6] for r in rows
    ]
    facts = {"launches": len(rows), "rows": each}
    yield Figure(f"launches {side}", sum(row.seconds or 0 for row in rows) * 1e6, "us", facts)


def _dense_steps(setting: Setting) -> Iterator[Figure]:
    """Yield the time of each step by dense operators, in microseconds."""
    packed, workspace = setting.packed()
    image = setting.image(side=SIDES[0])
    rows: list[tuple[str, float]] = []

    def time_step(step: Step, x: Tensor, y: Tensor, **more: Tensor) -> None:
        seconds = setting.seconds(partial(packed.dense[step.name], x, y, workspace, **more))
        rows.append((step.name, seconds * 1e6))

    with torch.no_grad():
        packed.run(image, torch.empty_like(image), time_step)
    yield Figure(f"dense {SIDES[0]}", sum(row[-1] for row in rows), "us", {"rows": rows})


def _model(setting: Setting) -> Iterator[Figure]:
    """Yield what the model says of each of these launches and steps, at the peaks of the GPU."""
    prepared = prepared_components()
    if prepared is None:
        gpu = known_gpu(setting.name)
        if gpu is None or setting.rehearsal:
            why = "the interpreter compiles nothing" if setting.rehearsal else f"{setting.name} is not known"
            yield Figure("model", None, "", {"why": why})
            return
        packed, _ = setting.packed()
        packed.to(torch.device("cpu"))
        prepared = gpu, all_components(packed, gpu)
    gpu, components = prepared
    for name, rows in components.items():
        yield Figure(f"model of {name}", float(len(rows)), "", {"gpu": gpu, "rows": rows})


def _occupancy(launch: Launch) -> dict[str, Any]:
    from mirl_kernels.core.triton.offline import RESIDENCY, resident_programs

    compiled = _warmed(launch)
    compiled._init_handles()
    facts = {"registers": compiled.n_regs, "spilled": compiled.n_spills}
    if architecture() in RESIDENCY:
        used = compiled.n_regs, compiled.metadata.shared, launch.tile.warps
        facts["resident programs"] = resident_programs(architecture(), *used)
    return facts


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
