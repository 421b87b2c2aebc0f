"""What a second thread gives, and each instruction set, interleaved, medians of 9 runs at 256x256:

python benchmarks/threads.py TICKET ...
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from statistics import median

import torch

from mirl_sparse import SparseRestorer

RUNS = 9
CONTENDERS = [("avx512", 1), ("avx512", 2), ("avx2", 2), ("portable", 2)]  # instruction set, threads


def serve(ticket: str) -> None:
    """Restore once for every number of threads that comes in, and say how long it took."""
    restorer, image = SparseRestorer.from_pretrained(ticket, "cpu"), torch.rand(1, 3, 256, 256)
    restorer(image)
    for line in sys.stdin:
        torch.set_num_threads(int(line))
        begin = time.perf_counter()
        restorer(image)
        print(time.perf_counter() - begin, flush=True)


def main() -> None:
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
        return
    names = [f"{isa}, {threads} thread{'s' * (threads > 1)}" for isa, threads in CONTENDERS]
    print(f"| ticket | {' | '.join(names)} | 1 to 2 threads | avx2 / avx512 |\n|---|{'---|' * len(names)}---|---|")
    for ticket in sys.argv[1:]:
        workers = {
            isa: subprocess.Popen([sys.executable, __file__, "--serve", ticket], stdin=subprocess.PIPE, text=True,
                                  stdout=subprocess.PIPE, env=os.environ | {"MIRL_CPU_ISA": isa})
            for isa, _ in CONTENDERS
        }  # fmt: skip
        seconds: dict[tuple[str, int], list[float]] = {contender: [] for contender in CONTENDERS}
        for _ in range(RUNS):
            for isa, threads in CONTENDERS:
                worker = workers[isa]
                assert worker.stdin and worker.stdout
                time.sleep(0.05)  # the threads of the one before spin for a while
                print(threads, file=worker.stdin, flush=True)
                seconds[isa, threads].append(float(worker.stdout.readline()))
        for worker in workers.values():
            worker.communicate()
        times = [median(seconds[contender]) for contender in CONTENDERS]
        cells = " | ".join(f"{t:.3f} s" for t in times)
        print(
            f"| {ticket} | {cells} | {times[0] / times[1]:.2f}x | {times[1] / times[2]:.2f} of its speed |", flush=True
        )


if __name__ == "__main__":
    main()
