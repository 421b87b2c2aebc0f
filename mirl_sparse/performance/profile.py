"""Measure where the sparse network's time goes, against the roofline of this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mirl_kernels.core.roofline import measure
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.cpu import CpuEngine


@dataclass(frozen=True)
class ProfileRow:
    """Hold the time and the work of one step of the sparse network.

    Attributes:
        name: Name of the layer or block.
        op: Name of the kernel.
        seconds: Median seconds of the runs.
        macs: Multiply-adds by surviving weights.
        bytes: Bytes that a fused schedule cannot help moving.
        limit: Seconds that arithmetic and memory allow at best.
    """

    name: str
    op: str
    seconds: float
    macs: int
    bytes: int
    limit: float


@dataclass(frozen=True)
class Profile:
    """Hold the time and the work of all steps of the sparse network.

    Attributes:
        gflops_peak: Arithmetic peak of this machine in GFLOP/s, as measured.
        gbytes_peak: Memory bandwidth of this machine in GB/s, as measured.
        steps: The steps in the order in which they run.
    """

    gflops_peak: float
    gbytes_peak: float
    steps: tuple[ProfileRow, ...]

    @property
    def seconds(self) -> float:
        """Return the seconds of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def macs(self) -> int:
        """Return the multiply-adds of all steps."""
        return sum(step.macs for step in self.steps)

    @property
    def bytes(self) -> int:
        """Return the bytes that all steps move."""
        return sum(step.bytes for step in self.steps)

    @property
    def limit(self) -> float:
        """Return the seconds that the roofline allows all steps at best."""
        return sum(step.limit for step in self.steps)

    @property
    def fraction(self) -> float:
        """Return the fraction of the roofline that is reached, in (0, 1]."""
        return self.limit / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON has it, totals included."""
        return {
            "gflops_peak": self.gflops_peak,
            "gbytes_peak": self.gbytes_peak,
            "steps": [asdict(step) for step in self.steps],
            "seconds": self.seconds,
            "macs": self.macs,
            "bytes": self.bytes,
            "limit": self.limit,
            "fraction": self.fraction,
        }


@torch.no_grad()
def profile(network: PromptIR, image: Tensor, runs: int = 7) -> Profile:
    """Profile the sparse network on the CPU kernels, and measure the roofline of this machine.

    Args:
        network: A ticket's network.
        image: (B, 3, H, W) float32 on the CPU, H and W as the network takes them.
        runs: Number of runs that medians are taken of.
    """
    machine, engine = measure(), CpuEngine(network)
    engine(image)
    by_run = [engine.profile(image) for _ in range(runs)]
    steps = []
    for same_step in zip(*by_run, strict=True):
        step = same_step[0]
        steps.append(
            ProfileRow(
                name=step.name,
                op=step.op,
                seconds=float(np.median([run.seconds for run in same_step])),
                macs=step.macs,
                bytes=step.bytes,
                limit=machine.limit(step.macs, step.bytes),
            )
        )
    return Profile(machine.flops / 1e9, machine.bandwidth / 1e9, tuple(steps))
