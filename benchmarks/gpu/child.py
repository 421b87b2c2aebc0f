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
    from benchmarks.gpu.prepared import packed_network
    from benchmarks.gpu.setting import Setting
    from mirl_sparse.runtime import triton as engine

    engine.PackedNetwork = packed_network  # type: ignore[misc, assignment]  # so that all stages pack once

    log = FigureLog(Path(path))
    for figure in measure(Setting(bool(rehearsal))):
        log.write(stage, key, **asdict(figure))


if __name__ == "__main__":
    main()
