"""Tell what this machine has, and which backends work on it."""

from __future__ import annotations

import os
import platform

import torch

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.choices import BackendName
from mirl_sparse.performance.environment import processor
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.runtime.tuning import Tuning

_TINY = PromptIRConfig(
    dim=8,
    num_blocks=(1, 1, 1, 1),
    num_refinement_blocks=1,
    heads=(1, 1, 1, 1),
    prompt_dims=(4, 4, 4),
    prompt_sizes=(4, 4, 4),
    prompt_count=1,
    unused_layers=False,
)
_TOLERANCE = {BackendName.CPU: 1e-4, BackendName.TRITON: 2e-2}  # of the answers, relative to the reference's


def machine() -> dict[str, str]:
    """Return what this machine has: a description by name of the part."""
    return {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": f"{processor()}, {os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads",
        "C++ kernels": _kernels(),
        "PyTorch": torch.__version__,
        "Triton": _triton(),
        **_gpus(),
    }


def _kernels() -> str:
    try:
        return f"for {cpu.isa()}; bfloat16 {cpu.bfloat16_unit().value}"
    except BackendError as error:
        return str(error)


def _triton() -> str:
    try:
        import triton  # whatever the package is called that it came with
    except ImportError:
        return "not installed"
    return str(triton.__version__)


def _gpus() -> dict[str, str]:
    if torch.cuda.is_available():
        return {f"GPU {i}": _gpu(i) for i in range(torch.cuda.device_count())}
    built = torch.version.cuda or torch.version.hip
    return {"GPU": "none that PyTorch can use" + ("" if built else " (this PyTorch is built for CPUs)")}


def _gpu(index: int) -> str:
    try:
        gpu = torch.cuda.get_device_properties(index)
    except RuntimeError as error:  # another process has it to itself, or the driver is of another version
        return str(error).splitlines()[0]
    architecture = gpu.gcnArchName if torch.version.hip else f"sm_{gpu.major}{gpu.minor}"
    platform_name = "ROCm" if torch.version.hip else "CUDA"
    version = torch.version.hip or torch.version.cuda
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {architecture}, {platform_name} {version}"


def backends() -> dict[str, str | None]:
    """Return why each backend does not work here, or None where it does.

    A tiny network is restored by each backend and compared with the reference.
    """
    torch.manual_seed(0)
    network, image = PromptIR(_TINY), torch.rand(1, 3, 16, 24)
    expected = SparseRestorer(network, BackendName.REFERENCE)(image)
    scale = float((expected - image).abs().max())
    faults: dict[str, str | None] = {BackendName.REFERENCE: None}
    for name, tolerance in _TOLERANCE.items():
        try:
            restored = _restored(network, name, image)
        except Exception as error:  # whatever it is, it is what the user wants to know
            faults[name] = next(iter(f"{error}".splitlines()), type(error).__name__)
            continue
        difference = float((restored - expected).abs().max()) / scale
        right = difference <= tolerance
        faults[name] = (
            None if right else f"answers differ by {difference:.1e}; expected at most {tolerance:.0e}"
        )
    return faults


def _restored(network: PromptIR, backend: str, image: torch.Tensor) -> torch.Tensor:
    device = "cuda" if backend == BackendName.TRITON and torch.cuda.is_available() else "cpu"
    # No step is left to dense operators, which would prove nothing.
    restorer = SparseRestorer(network.to(device), backend, tuning=Tuning({}, frozenset()))
    for _ in range(3):  # on a GPU the second call records a graph, the third replays it
        restored = restorer(image.to(device)).cpu()
    return restored
