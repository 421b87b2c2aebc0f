"""Choose what computes a step: the fused C++ kernels, or plain PyTorch."""

from __future__ import annotations

import torch

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_sparse.choices import Choice
from mirl_sparse.errors import UserError
from mirl_training.engine.settings import TrainingPrecision


class TrainingEngine(Choice):
    """Name what computes a step; "auto" is "fused" where it was built and can be used."""

    AUTO = "auto"
    FUSED = "fused"
    REFERENCE = "reference"


def choose_engine(
    name: str, device: str = "cpu", precision: TrainingPrecision = TrainingPrecision.FLOAT32
) -> tuple[TrainingEngine, str]:
    """Return the engine that a name means here, and a line that says why.

    "auto" is "fused" where the C++ kernels were built and the step is float32 on the CPU.

    Args:
        name: One of `TrainingEngine`.
        device: "cpu" or "cuda".
        precision: The precision of a step, "float32" or "bfloat16".

    Returns:
        "fused" or "reference", and the line.

    Raises:
        UserError: The name is unknown, or "fused" cannot run.
    """
    if name not in list(TrainingEngine):
        raise UserError(f"engine is {str(name)!r}; expected one of {TrainingEngine.names()}")
    engine = TrainingEngine(name)
    is_float32_on_cpu = device == "cpu" and precision == TrainingPrecision.FLOAT32
    if engine == TrainingEngine.FUSED and not is_float32_on_cpu:
        raise UserError(
            f"engine 'fused' trains float32 on a CPU; training.precision is {precision}, the device {device}"
        )
    if engine == TrainingEngine.REFERENCE or not is_float32_on_cpu:
        return TrainingEngine.REFERENCE, (
            f"engine: reference (PyTorch's autograd, every weight computed), {precision} on {device}"
        )
    if reason := _why_no_kernels():
        if engine == TrainingEngine.FUSED:
            raise UserError(f"engine 'fused' cannot run here: {reason}")
        return TrainingEngine.REFERENCE, f"engine: reference (PyTorch's autograd), since {reason}"
    threads = torch.get_num_threads()
    return TrainingEngine.FUSED, (
        f"engine: fused C++ kernels ({cpu.isa()}, {threads} thread{'s' * (threads > 1)}), by surviving"
        " weights alone; --engine reference trains in plain PyTorch"
    )


def _why_no_kernels() -> str | None:
    """Return why the C++ library cannot be loaded, None if it can."""
    try:
        cpu.load_library()
    except BackendError as error:
        return str(error)
    return None
