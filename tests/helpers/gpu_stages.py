"""Stages that end in every way a stage can end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.figures import Figure

MARK = Path(os.environ.get("GPU_STAGES_MARK", os.devnull))


def describe(setting):
    yield Figure("GPU", os.environ.get("GPU_STAGES_NAME", "rehearsal"), facts={"in_key": True})


def works(setting):
    with MARK.open("a") as file:
        file.write("x")
    yield Figure("speed", 2.5, "GB/s", {"bytes": 100, "with | a bar": [1, 2]})


def fails(setting):
    yield Figure("before", 1.0, "s")
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def dies(setting):
    yield Figure("before", 2.0, "s")
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(setting):
    yield Figure("before", 3.0, "s")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    MARK.write_text(str(child.pid))
    time.sleep(600)
