"""Measure the kernels on the GPU of this machine; see the package."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.gpu.runner import Runner
from benchmarks.gpu.stages import STAGES


def main() -> None:
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="folder of results")
    parser.add_argument("--seconds", type=float, default=470, help="time for all stages together")
    parser.add_argument("--only", nargs="+", choices=names, help="stages to run; machine always runs")
    parser.add_argument("--rehearsal", action="store_true", help="run a tiny network in Triton's interpreter")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the stage that runs is ended, too
    chosen = [stage for stage in STAGES if stage.name in ("machine", *(asked.only or names))]
    complete = Runner(asked.out, asked.seconds, asked.rehearsal).run(chosen)
    print((asked.out / "summary.md").read_text())
    sys.exit(not complete)


if __name__ == "__main__":
    main()
