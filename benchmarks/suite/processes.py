"""Measure what needs a process of its own.

That is the time until the first image, the peak of memory and, where valgrind is installed, the number of
instructions of a restoration.

    python -m benchmarks.suite.processes KIND CONTENDER NETWORK HEIGHT WIDTH

prints the figures of one process as JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import cast

from benchmarks.suite.rows import Figures, Kind, Row

ROOT = Path(__file__).parents[2]
SPARSE, STOCK = "sparse cpu", "dense eager, stock allocator"  # neither tunes the allocator
SMALL, FULL = "small", "full-size"
_RUNS = 3
_INSTRUCTIONS = ("valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null")


@dataclass(frozen=True)
class Process:
    """Describe one contender in its own process.

    Attributes:
        kind: "cold" (import, load, first and second image), "memory" (peak) or "instructions".
        contender: `SPARSE`, or a name of `mirl_sparse.performance.peers.DENSE`.
        network: `SMALL` or `FULL`.
        height: Of the image.
        width: Of the image.
    """

    kind: Kind
    contender: str
    network: str
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.kind}: {self.contender}, {self.network} {self.height}x{self.width}"

    def measure(self) -> Row:
        """Return the row of the results; where times count, they are medians of several processes."""
        # Imports PyTorch, whose import is timed in the processes that this starts.
        from benchmarks.suite.results import now

        # Compiling takes a minute.
        runs = _RUNS if self.kind == "cold" and "compiled" not in self.contender else 1
        row = Row(
            section=self.kind,
            contender=self.contender,
            network=self.network,
            pixels=self.height * self.width,
            date=now(),
        )
        if self.kind == "instructions" and not shutil.which("valgrind"):
            return Row(**row, left_out="valgrind is not installed")
        try:
            figures = [self._run() for _ in range(runs)]
        except subprocess.CalledProcessError as error:
            return Row(**row, left_out=_reason(error))
        return cast(Row, {**row, **_medians(figures), "runs": runs})

    def _run(self) -> Figures:
        arguments = [self.kind, self.contender, self.network, str(self.height), str(self.width)]
        command = [sys.executable, "-m", "benchmarks.suite.processes", *arguments]
        environment = dict(os.environ)
        if self.kind == "instructions":
            command = [*_INSTRUCTIONS, *command]
            environment["OMP_NUM_THREADS"] = "1"  # threads that wait for work count too
            environment["MIRL_CPU_ISA"] = "avx2"  # valgrind knows no AVX-512
            environment["ONEDNN_MAX_CPU_ISA"] = environment["ATEN_CPU_CAPABILITY"] = "avx2"
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT)
        if self.kind == "instructions":
            counted = next(line for line in done.stderr.splitlines() if "Collected :" in line)
            return Figures(instructions=int(counted.split()[-1]))
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        return figures


def _medians(figures: list[Figures]) -> Figures:
    """Return the first process's figures, with the medians of all processes' times."""
    timed = [key for key, value in figures[0].items() if isinstance(value, float)]
    times = {key: median(f[key] for f in figures) for key in timed}  # type: ignore[literal-required]
    return cast(Figures, {**figures[0], **times})


def _reason(error: subprocess.CalledProcessError) -> str:
    """Return why a process failed, in one line."""
    if error.returncode == -signal.SIGKILL:
        return "was killed, as processes are that want more memory than there is"
    lines = [line for line in error.stderr.strip().splitlines() if line]
    return str(lines[-1])[:200] if lines else f"exit status {error.returncode}"


def _peak() -> int:
    """Return the peak memory of this process in bytes."""
    # getrusage would count the process that started this one.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    return int(peak[1]) * 1024


_COLD = ((SMALL, (SPARSE, STOCK, "dense compiled")), (FULL, (SPARSE, STOCK)))
_MEMORY = (
    (SMALL, SPARSE, ((256, 256), (1024, 1024), (3000, 4000))),
    (SMALL, STOCK, ((256, 256), (1024, 1024), (2048, 2048))),  # 12 megapixels take more than 24 GB
    (FULL, SPARSE, ((256, 256), (1024, 1024))),
    (FULL, STOCK, ((256, 256), (512, 512))),
)
_INSTRUCTION_COUNTS = (SPARSE, "dense channels_last")
PROCESSES = [
    *(Process("cold", contender, name, 256, 256) for name, contenders in _COLD for contender in contenders),
    *(Process("memory", contender, name, *size) for name, contender, sizes in _MEMORY for size in sizes),
    *(Process("instructions", contender, SMALL, 64, 64) for contender in _INSTRUCTION_COUNTS),
]


def _count_instructions(call: Callable[[], object]) -> None:
    """Let valgrind, which runs this process, count the instructions of one call."""
    call()  # some work is done only in the first calls
    for switch in ("on", "off"):
        command = [str(shutil.which("callgrind_control")), f"--instr={switch}", str(os.getpid())]
        subprocess.run(command, check=True, capture_output=True)
        if switch == "on":
            call()


def main() -> None:
    kind, contender, name, *sides = sys.argv[1:]
    begin = time.perf_counter()
    import torch

    from mirl_sparse.performance import peers
    from mirl_sparse.performance.environment import environment
    from mirl_sparse.runtime.allocator import Allocator
    from mirl_sparse.runtime.restorer import SparseRestorer
    from mirl_sparse.tickets import find_ticket, load_network

    imported = time.perf_counter()
    if name == SMALL:
        network = load_network(find_ticket(SMALL))
    else:
        from benchmarks.suite import tickets

        network = tickets.network("layerwise", 0.107)
    image = torch.rand(1, 3, *map(int, sides))
    if contender not in (STOCK, SPARSE):
        Allocator().tune()
    loaded = time.perf_counter()
    with torch.no_grad(), peers.quiet():
        call: Callable[[], object]
        if contender == SPARSE:
            call = partial(SparseRestorer(network, "cpu"), image)
        else:
            call = peers.DENSE[contender](network, image)
        built = time.perf_counter()
        call()
        first = time.perf_counter()
        row = {
            "import": imported - begin,
            "load": loaded - imported,
            "build": built - loaded,
            "first": first - built,
        }
        if kind == "cold":
            call()
            row["second"] = time.perf_counter() - first
        if kind == "instructions":
            _count_instructions(call)
    print(json.dumps(row | {"peak_bytes": _peak(), **environment().to_dict()}))


if __name__ == "__main__":
    main()
