"""Show where a ticket's time on the CPU goes, phase by phase.

    python -m benchmarks.studies.phases [TICKET ...] [--size 256] [--runs 9]

Build the kernels with clocks in them (phase_times.h) in ``build/phases``, and print the milliseconds of each
phase, summed over threads. A ticket is a file, or the name of one that is shipped or in
`benchmarks.suite.tickets`.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.suite.tickets import TICKETS, network
from mirl_kernels.core import native
from mirl_sparse.runtime.cpu import CpuEngine
from mirl_sparse.tickets import find_ticket, load_network

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "kernels/mirl_kernels/core/cpu/src/phase_times.h"


def phases() -> list[str]:
    """Return the names of the phases, in the order of the header."""
    body = HEADER.read_text().partition("enum class Phase")[2].partition("};")[0]
    return [name for name in re.findall(r"^  (\w+)", body, re.MULTILINE) if name != "count"]


def build() -> Path:
    """Build the kernels with clocks in them, as far as they changed, and return the library."""
    folder = ROOT / "build/phases"
    configure = ["cmake", "-S", str(ROOT / "kernels"), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run([*configure, "-DMIRL_PHASE_TIMES=ON"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder), "-j"], check=True, stdout=subprocess.DEVNULL)
    return folder / native.LIBRARY


def measure(engine: CpuEngine, image: torch.Tensor, runs: int) -> tuple[np.ndarray, float]:
    """Return the milliseconds of each phase, and of a run: medians."""
    read = native.load_library().mirl_phase_times
    nanoseconds = (ctypes.c_int64 * len(phases()))()
    engine(image)
    rows, times = [], []
    for _ in range(runs):
        read(nanoseconds)
        begin = time.perf_counter()
        engine(image)
        times.append(time.perf_counter() - begin)
        read(nanoseconds)
        rows.append(list(nanoseconds))
    return np.median(np.array(rows), 0) / 1e6, float(np.median(times)) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description="Show where a ticket's time on the CPU goes.")
    parser.add_argument("tickets", nargs="*", default=["layerwise10", "uneven10", "small"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    native.LIBRARY = str(build())
    image, columns = torch.rand(1, 3, options.size, options.size), []
    for name in options.tickets:
        ticket = network(*TICKETS[name]) if name in TICKETS else load_network(find_ticket(name))
        columns.append(measure(CpuEngine(ticket), image, options.runs))
    print(
        f"{options.size}x{options.size} pixels, milliseconds of {torch.get_num_threads()} threads together\n"
    )
    print("| phase |", " | ".join(options.tickets), "|\n|---|" + "---|" * len(columns))
    for i, phase in enumerate(phases()):
        print(f"| {phase} |", " | ".join(f"{times[i]:.1f}" for times, _ in columns), "|")
    print("| whole run |", " | ".join(f"{total:.1f}" for _, total in columns), "|")


if __name__ == "__main__":
    main()
