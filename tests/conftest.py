"""Settings of all tests."""

import os

from hypothesis import settings

# Processes of pytest-xdist share the processors; PyTorch reads this when it is imported, as do the programs
# that tests start.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

# A slow machine, or a busy one, is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
