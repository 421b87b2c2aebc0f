"""Run one stage in a process of its own, which `runner` starts.

python -m benchmarks.gpu.child STAGE SOURCE KEY FIGURES [rehearsal]
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.figures import FigureLog


def main() -> None:
    stage, source, key, path, *rehearsal = sys.argv[1:]
    module, function = source.split(":")
    measure = getattr(import_module(module), function)
    from benchmarks.gpu.setting import Setting

    log = FigureLog(Path(path))
    for figure in measure(Setting(bool(rehearsal))):
        log.write(stage, key, **asdict(figure))


if __name__ == "__main__":
    main()
