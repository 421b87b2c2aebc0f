"""Dense against sparse in one process: every dense configuration at its best, runs interleaved.

The dense network is the ticket's own, zeros included, as it would be run without this package. The
sparse result is checked against it before anything is timed; no ratio is given when they differ.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mirl_kernels import _cpu
from mirl_sparse.errors import UserError
from mirl_sparse.network import PromptIR
from mirl_sparse.restorer import SparseRestorer

TOLERANCE = 1e-4
# Memory that is given back to the system is touched anew at every call, which costs a dense network
# more than its arithmetic. glibc reads these when the process starts.
TUNED_ALLOCATOR = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"


def tuned() -> bool:
    """Whether this process runs with the allocator tuned for large tensors."""
    return TUNED_ALLOCATOR in os.environ.get("GLIBC_TUNABLES", "")


def run_tuned() -> None:
    """Start this command again with the tuned allocator; returns where that is impossible or done."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" and not tuned():
        environment = os.environ | {"GLIBC_TUNABLES": TUNED_ALLOCATOR}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def contenders(network: PromptIR, image: Tensor, compile: bool = True) -> dict[str, Callable[[], Tensor]]:
    """What is compared, by name; each call restores ``image`` once."""
    from torch import nn

    last = image.contiguous(memory_format=torch.channels_last)
    found: dict[str, Callable[[], Tensor]] = {
        "dense eager": lambda: network(image),
        "dense channels_last": lambda: network(last),
    }
    if compile:
        import torch._inductor.config as inductor

        inductor.freezing = True
        for name, x in (("dense compiled", image), ("dense compiled channels_last", last)):
            torch._dynamo.reset()
            compiled: nn.Module = torch.compile(network)  # type: ignore[assignment]
            found[name] = lambda compiled=compiled, x=x: compiled(x)  # type: ignore[misc]
    restorer = SparseRestorer(network, "cpu")
    found["sparse cpu"] = lambda: restorer(image)
    return found


@torch.no_grad()
def bench(network: PromptIR, size: int = 256, runs: int = 7, compile: bool = True) -> dict[str, Any]:
    """Median, 20% and 80% percentiles in seconds of every contender at size x size, and the ratios of
    the dense medians to the sparse one."""
    if size < 8 or size % 8:
        raise UserError(f"size is {size}; expected a multiple of 8")
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    entries = contenders(network, image, compile)
    expected = network(image)
    first: dict[str, float] = {}
    for name, call in list(entries.items()):
        begin = time.perf_counter()
        try:
            result = call()
        except Exception as error:  # a compiler that fails here is a row that says so
            if not name.startswith("dense compiled"):
                raise
            del entries[name]
            print(f"{name}: not available ({type(error).__name__})", file=sys.stderr)
            continue
        first[name] = time.perf_counter() - begin
        difference = (result - expected).abs().max().item()
        if not difference <= TOLERANCE:
            raise UserError(f"{name} differs from the dense network by {difference:.1e}; nothing is timed")
        call()
    times: dict[str, list[float]] = {name: [] for name in entries}
    for _ in range(runs):
        for name, call in entries.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    rows = {}
    for name, values in times.items():
        values.sort()
        rows[name] = {
            "median": statistics.median(values),
            "p20": values[int(0.2 * (runs - 1))],
            "p80": values[round(0.8 * (runs - 1))],
            "first_call": first[name],
        }
    sparse = rows["sparse cpu"]["median"]
    strongest = min((n for n in rows if n != "sparse cpu"), key=lambda n: rows[n]["median"])
    return {
        "size": size,
        "runs": runs,
        "threads": torch.get_num_threads(),
        "isa": _cpu.isa(),
        "torch": torch.__version__,
        "allocator": "tuned" if tuned() else "default",
        "rows": rows,
        "ratios": {n: r["median"] / sparse for n, r in rows.items()},
        "strongest_dense": strongest,
        "speedup": rows[strongest]["median"] / sparse,
    }
