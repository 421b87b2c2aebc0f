"""Measure the kernels on the GPU of this machine; see the package."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.calibrate import calibrate_folder
from benchmarks.gpu.runner import Runner
from benchmarks.gpu.stages import STAGES

_PATIENCE = 1800.0  # seconds that a stage of a rehearsal may take


def main() -> None:
    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="folder of results")
    prepared = Path("benchmarks/results/gpu/prepared")
    parser.add_argument("--prepared", type=Path, default=prepared, help="what benchmarks.gpu.prepare made")
    parser.add_argument("--seconds", type=float, help="time for all stages together; by default 470")
    parser.add_argument("--only", nargs="+", choices=names, help="stages to run; machine always runs")
    parser.add_argument("--rehearsal", action="store_true", help="run a tiny network in Triton's interpreter")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the stage that runs is ended, too
    chosen = [stage for stage in STAGES if stage.name in ("machine", *(asked.only or names))]
    seconds = asked.seconds or 470
    if asked.rehearsal:  # the interpreter is slow
        chosen, seconds = (
            [replace(stage, limit=_PATIENCE) for stage in chosen],
            asked.seconds or 4 * _PATIENCE,
        )
    complete = Runner(asked.out, seconds, asked.rehearsal, asked.prepared).run(chosen)
    print((asked.out / "summary.md").read_text())
    calibrate_folder(asked.out, asked.rehearsal)
    sys.exit(not complete)


if __name__ == "__main__":
    main()
