"""What only a process of its own can tell: how long one waits for the first image, how much memory it takes, and, where valgrind is
installed, how many instructions a restoration is.

    python benchmarks/processes.py KIND CONTENDER NETWORK HEIGHT WIDTH     # prints one process's figures as JSON
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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

SPARSE, STOCK, SMALL = (
    "sparse cpu",
    "dense eager, stock allocator",
    "small",
)  # both with the allocator as it comes
_RUNS = 3
_INSTRUCTIONS = ("valgrind", "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=/dev/null")


@dataclass(frozen=True)
class Process:
    """One contender in its own process: ``kind`` "cold" (import, load, first and second image), "memory" (peak) or
    "instructions"."""

    kind: str
    contender: str
    network: str
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.kind}: {self.contender}, {self.network} {self.height}x{self.width}"

    def measure(self) -> dict[str, Any]:
        """The row of the results: medians of several processes where times matter that vary."""
        from results import now  # imports PyTorch, whose import is timed in the processes that this starts

        runs = (
            _RUNS if self.kind == "cold" and "compiled" not in self.contender else 1
        )  # compiling takes a minute
        row: dict[str, Any] = {"section": self.kind, "contender": self.contender, "network": self.network,
                               "pixels": self.height * self.width,
                               "date": now()}  # fmt: skip
        if self.kind == "instructions" and not shutil.which("valgrind"):
            return row | {"left_out": "valgrind is not installed"}
        try:
            found = [self._run() for _ in range(runs)]
        except subprocess.CalledProcessError as error:
            return row | {"left_out": _reason(error)}
        times = {k: median(f[k] for f in found) for k, v in found[0].items() if isinstance(v, float)}
        return row | found[0] | times | {"runs": runs}

    def _run(self) -> dict[str, Any]:
        command = [
            sys.executable,
            __file__,
            self.kind,
            self.contender,
            self.network,
            str(self.height),
            str(self.width),
        ]
        environment = dict(os.environ)
        if self.kind == "instructions":
            command = [*_INSTRUCTIONS, *command]
            environment["OMP_NUM_THREADS"] = "1"  # threads that wait for work count too
            environment["MIRL_CPU_ISA"] = "avx2"  # valgrind knows no AVX-512
            environment["ONEDNN_MAX_CPU_ISA"] = environment["ATEN_CPU_CAPABILITY"] = "avx2"
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        if self.kind == "instructions":
            counted = next(line for line in done.stderr.splitlines() if "Collected :" in line)
            found = {"instructions": int(counted.split()[-1])}
        return found


def _reason(error: subprocess.CalledProcessError) -> str:
    """Why a process failed, in a line."""
    if error.returncode == -signal.SIGKILL:
        return "was killed, as processes are that want more memory than there is"
    lines = [line for line in error.stderr.strip().splitlines() if line]
    return str(lines[-1])[:200] if lines else f"exit status {error.returncode}"


def _peak() -> int:
    """Bytes of memory that this process took at most. Not getrusage's, which remembers the process that started this one."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


FULL = "full-size"
PROCESSES = [
    Process("cold", contender, name, 256, 256)
    for name, contenders in (
        (SMALL, (SPARSE, STOCK, "dense compiled")),
        (FULL, (SPARSE, STOCK)),
    )
    for contender in contenders
] + [
    Process("memory", contender, name, height, width)
    for name, contender, sizes in (
        (SMALL, SPARSE, ((256, 256), (1024, 1024), (3000, 4000))),
        (SMALL, STOCK, ((256, 256), (1024, 1024), (2048, 2048))),  # of 12 megapixels: more than 24 GB
        (FULL, SPARSE, ((256, 256), (1024, 1024))),
        (FULL, STOCK, ((256, 256), (512, 512))),
    )
    for height, width in sizes
] + [Process("instructions", contender, SMALL, 64, 64) for contender in (SPARSE, "dense channels_last")]  # fmt: skip


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
        import tickets

        network = tickets.network("layerwise", 0.107)  # drawn, which is nobody's loading
    image = torch.rand(1, 3, *map(int, sides))
    if contender not in (STOCK, SPARSE):
        Allocator().tune()
    loaded = time.perf_counter()
    with torch.no_grad(), peers.quiet():
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
            call()  # what is done once is done
            for switch in ("on", "off"):
                command = [str(shutil.which("callgrind_control")), f"--instr={switch}", str(os.getpid())]
                subprocess.run(command, check=True, capture_output=True)
                if switch == "on":
                    call()
    print(json.dumps(row | {"peak_bytes": _peak(), **environment().to_dict()}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
