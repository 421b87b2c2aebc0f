"""Settings of all tests."""

import os

from hypothesis import settings

# Processes of pytest-xdist share the processors that they may run on; PyTorch reads this when it is imported,
# as do the programs that tests start.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    has_affinity = hasattr(os, "sched_getaffinity")
    processors = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, processors // int(workers))))

# A slow machine, or a busy one, is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
