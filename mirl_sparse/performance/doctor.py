"""What this machine has, and which backends work on it."""

from __future__ import annotations

import os
import platform

import torch

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.performance.bench import processor
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.runtime.triton import Tuning

_TINY = PromptIRConfig(8, (1, 1, 1, 1), 1, (1, 1, 1, 1), prompt_dims=(4, 4, 4), prompt_sizes=(4, 4, 4), prompt_count=1,
                       unused_layers=False)  # fmt: skip
_TOLERANCE = {"cpu": 1e-4, "triton": 2e-2}  # of the answers, relative to the reference's


def _triton() -> str:
    try:
        import triton  # whatever the package is called that it came with
    except ImportError:
        return "not installed"
    return str(triton.__version__)


def _kernels() -> str:
    try:
        return f"for {cpu.isa()}"
    except BackendError as error:
        return str(error)


def machine() -> dict[str, str]:
    """What there is, by name."""
    found = {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": f"{processor()}, {os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads",
        "C++ kernels": _kernels(),
        "PyTorch": torch.__version__,
        "Triton": _triton(),
    }
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            try:
                gpu = torch.cuda.get_device_properties(i)
            except (
                RuntimeError
            ) as error:  # another process has it to itself, the driver is of another version
                found[f"GPU {i}"] = str(error).splitlines()[0]
                continue
            architecture = gpu.gcnArchName if torch.version.hip else f"sm_{gpu.major}{gpu.minor}"
            name = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {architecture}"
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
            # No step is left to dense operators, which would prove nothing.
            restorer = SparseRestorer(network.to(device), name, tuning=Tuning({}, frozenset()))
            for _ in range(3):  # on a GPU the second call records a graph, the third replays it
                restored = restorer(image.to(device)).cpu()
        except Exception as error:  # whatever it is, it is what the user wants to know
            found[name] = next(iter(f"{error}".splitlines()), type(error).__name__)
            continue
        difference = float((restored - expected).abs().max()) / scale
        right = difference <= tolerance
        found[name] = (
            None if right else f"answers differ by {difference:.1e}; expected at most {tolerance:.0e}"
        )
    return found
