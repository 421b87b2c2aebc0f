"""Compare the cost model's predictions for ten masks of the full-size network with measured times.

python -m benchmarks.studies.cost
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.suite.tickets import network
from mirl_sparse.performance.prices import measure
from mirl_sparse.runtime.cpu import CpuEngine

RUNS = 9
MASKS = [("layerwise", d) for d in (0.02, 0.0352, 0.05, 0.107, 0.2, 0.5)] + [
    ("uneven", d) for d in (0.0352, 0.05, 0.1, 0.2)
]


def main() -> None:
    model, image = measure(), torch.rand(1, 3, 256, 256)
    print("| mask | predicted | measured | off by |\n|---|---|---|---|")
    for criterion, density in MASKS:
        engine = CpuEngine(network(criterion, density))
        engine(image)
        times = []
        for _ in range(RUNS):
            begin = time.perf_counter()
            engine(image)
            times.append(time.perf_counter() - begin)
        predicted, median = model.engine(engine), float(np.median(times))
        off = predicted / median - 1
        print(
            f"| {criterion} {density:.2%} | {predicted * 1e3:.0f} ms | {median * 1e3:.0f} ms | {off:+.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
