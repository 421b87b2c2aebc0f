"""Describe what a measured time depends on beside the program."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mirl_kernels.core import cpu


@dataclass(frozen=True)
class Environment:
    """Describe the machine and the software that a time was measured with.

    Attributes:
        processor: Name of the processor.
        threads: Number of PyTorch's threads.
        isa: Instruction set of the C++ kernels.
        torch: Version of PyTorch.
        python: Version of Python.
    """

    processor: str
    threads: int
    isa: str
    torch: str
    python: str

    def to_dict(self) -> dict[str, Any]:
        """Return the environment as JSON has it."""
        return asdict(self)


def processor() -> str:
    """Return the processor's name as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def environment() -> Environment:
    """Return the environment of this process."""
    return Environment(
        processor=processor(),
        threads=torch.get_num_threads(),
        isa=cpu.isa(),
        torch=torch.__version__,
        python=platform.python_version(),
    )
