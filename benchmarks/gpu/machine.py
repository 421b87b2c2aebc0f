"""Describe the machine, and measure what its GPU can do at most."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.setting import Setting

_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu", "driver_version")
_LAUNCHES = 500
_GIB = 1 << 30


def describe(setting: Setting) -> Iterator[Figure]:
    """Yield the names and versions that results depend on, and the GPU's clocks as they are now."""
    import triton

    from benchmarks.gpu.prepared import adopt

    in_key = {"in_key": True}
    yield Figure("GPU", setting.name, facts=in_key)
    for package in (torch, triton):
        yield Figure(package.__name__, package.__version__, facts=in_key)
    yield Figure("CUDA", str(torch.version.cuda or torch.version.hip), facts=in_key)
    yield Figure("ptxas", _ptxas(), facts=in_key)
    yield Figure("Python", platform.python_version())
    yield Figure("date", time.strftime("%Y-%m-%d", time.gmtime()))
    yield adopt(setting.rehearsal, setting.name)
    if not setting.rehearsal:
        properties = torch.cuda.get_device_properties(setting.device)
        yield Figure("capability", f"{properties.major}.{properties.minor}")
        yield Figure("processors", float(properties.multi_processor_count))
        yield Figure("memory", properties.total_memory / _GIB, "GiB")
        yield Figure("second-level cache", getattr(properties, "L2_cache_size", 0) / (1 << 20), "MiB")
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        query = [tool, f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
        yield Figure("clocks", answer[0] if answer else None, facts={"of": list(_CLOCKS)})


def _ptxas() -> str:
    """Return the version of the assembler that Triton uses for this GPU."""
    from triton.backends.nvidia.compiler import get_ptxas

    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
    found = get_ptxas(10 * capability[0] + capability[1])
    return str(getattr(found, "version", found))


def peaks(setting: Setting) -> Iterator[Figure]:
    """Yield what copies, matrix products and launches reach: the roof of everything else."""
    device, small = setting.device, setting.rehearsal
    for name, size in (("copy in memory", 2 * _GIB), ("copy in the cache", 8 << 20)):
        x = torch.empty((1 << 16) if small else size, dtype=torch.uint8, device=device)
        x.random_()
        y = torch.empty_like(x)
        seconds = setting.seconds(partial(y.copy_, x))
        yield Figure(name, 2 * x.numel() / seconds / 1e9, "GB/s", {"bytes": x.numel()})
        del x, y
    for dtype in (torch.float16, torch.bfloat16):
        n = 64 if small else 8192
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))  # zeros would run faster
        seconds = setting.seconds(partial(torch.matmul, a, b))
        name = f"matrix product {str(dtype).removeprefix('torch.')}"
        yield Figure(name, 2 * n**3 / seconds / 1e12, "TFLOP/s", {"n": n})
    x = torch.zeros(256, device=device)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            x.add_(1)

    yield Figure("launch in a graph", setting.seconds(launches) / _LAUNCHES * 1e6, "us")
    launches()
    setting.synchronize()
    begin = time.perf_counter()
    launches()
    setting.synchronize()
    yield Figure("launch by PyTorch", (time.perf_counter() - begin) / _LAUNCHES * 1e6, "us")
