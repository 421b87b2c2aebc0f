"""What this machine has, and which backends work on it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from mirl_kernels import _cpu
from mirl_sparse.bench import processor
from mirl_sparse.network import PromptIR, PromptIRConfig
from mirl_sparse.restorer import SparseRestorer

_TINY = PromptIRConfig(8, (1, 1, 1, 1), 1, (1, 1, 1, 1), prompt_dims=(4, 4, 4), prompt_sizes=(4, 4, 4), prompt_count=1,
                       unused_layers=False)  # fmt: skip
_TOLERANCE = {"cpu": 1e-4, "triton": 2e-2}  # of the answers, relative to the reference's


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, str]:
    """What there is, by name."""
    found = {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": f"{processor()}, {os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads",
        "C++ kernels": f"for {_cpu.isa()}" if _cpu.available() else "not built",
        "PyTorch": torch.__version__,
        "Triton": _version("triton"),
    }
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            name = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {getattr(gpu, 'gcnArchName', f'sm_{gpu.major}{gpu.minor}')}"
            found[f"GPU {i}"] = (
                f"{name}, {'ROCm' if torch.version.hip else 'CUDA'} {torch.version.hip or torch.version.cuda}"
            )
    else:
        built = torch.version.cuda or torch.version.hip
        found["GPU"] = "none that PyTorch can use" + ("" if built else " (this PyTorch is built for CPUs)")
    return found


def backends() -> dict[str, str | None]:
    """Each backend, and why it does not work here, None if it does: a tiny network is restored and compared with the reference."""
    torch.manual_seed(0)
    network, image = PromptIR(_TINY), torch.rand(1, 3, 16, 24)
    expected = SparseRestorer(network, "reference")(image)
    scale = float((expected - image).abs().max())
    found: dict[str, str | None] = {"reference": None}
    for name, tolerance in _TOLERANCE.items():
        device = "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"
        try:
            restored = SparseRestorer(network.to(device), name)(image.to(device)).cpu()
        except Exception as error:  # whatever it is, it is what the user wants to know
            found[name] = next(iter(f"{error}".splitlines()), type(error).__name__)
            continue
        difference = float((restored - expected).abs().max()) / scale
        right = difference <= tolerance
        found[name] = None if right else f"answers differ by {difference:.1e}; expected at most {tolerance:.0e}"
    return found
