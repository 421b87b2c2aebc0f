"""Predict how long launches take on GPUs that are not here.

Every figure is a prediction: no GPU has confirmed the model. A launch takes as long as the busiest of four
parts of the GPU, each at the same fraction of its peak, or as its programs wait for memory if that is longer,
and the time from one launch to the next:

- memory: the bytes of the distinct addresses that the launch reads and writes. Hidden channels and sums of
  Gram matrices do not count if the second-level cache keeps all of them: one launch writes them, the next
  reads them, and the one after overwrites them. They may take a quarter of what the cache holds at most.
  Features count always, though small ones would stay in the cache;
- the second-level cache: the bytes that each program fetches once, and those that are written;
- tensor cores: the multiply-adds issued, padding included;
- the schedulers: the instructions issued, counted loop by loop in the kernel as it is compiled for that
  architecture. What the assembler unrolls or drops later is not seen. Every instruction is taken to issue in
  one cycle of its scheduler (on AMD's, whose wave of 64 takes 4 cycles of 16 lanes, in four);
- waiting: a program waits LATENCY when it begins, and in every trip of a loop that loads into registers.
  What it copies to shared memory instead, it waits for in a later trip. A processor runs as many programs
  at the same time as registers, shared memory and warps allow; only these wait together.

Programs are spread over the processors evenly. Some processors are idle in the last wave. The model does not
know bank conflicts, several waits in one trip, or clocks below the boost clock. It counts a load as one
instruction, however many lines of the cache it touches.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirl_kernels.core.triton.launches import Launch
from mirl_kernels.core.triton.offline import compile_for, is_amd
from mirl_kernels.core.triton.work import Work, count_work
from mirl_kernels.core.triton.workspace import Workspace

# Seconds from one kernel to the next in a CUDA graph, sparse or dense: 1 to 2 us are usually quoted.
LAUNCH = 1.5e-6
# The same where the next kernel may begin while this one ends, which hides its launch but not the end of this
# one. Published: 0.96 us less between empty kernels of a graph on Hopper. Three quarters of it count here.
DEPENDENT_LAUNCH = 0.8e-6
LATENCY = 500  # cycles from a load to its value: published measurements are 270 in the cache, 600 beyond it
EAGER_LAUNCH = 5e-6  # seconds, where PyTorch launches each kernel from Python


@dataclass(frozen=True)
class GPU:
    """State the peaks of a GPU, by its maker's data sheet.

    Attributes:
        architecture: One of `offline.SHARED_MEMORY`.
        processors: The number of processors.
        clock: Their boost clock, in Hz.
        lanes: The lanes of a processor that issue per clock.
        memory: Bytes/s of the memory.
        cache: Bytes/s of the second-level cache.
        tensor: Float16 multiply-adds/s of the tensor cores with float32 sums, of dense matrices.
        cached: Bytes that can be trusted to stay in the second-level cache: a quarter of what it holds, or 0
            where the processors do not share it.
    """

    architecture: str
    processors: int
    clock: float
    lanes: int
    memory: float
    cache: float
    tensor: float
    cached: int

    @property
    def dependent(self) -> bool:
        """Return whether a launch may begin while the one before it ends: on NVIDIA's from sm_90 on."""
        return not is_amd(self.architecture) and int(self.architecture.removeprefix("sm_")) >= 90

    def workspace(self) -> Workspace:
        """Return a new workspace for such a GPU."""
        return Workspace(self.cached, self.processors, dependent=self.dependent)


# No data sheet has the second-level cache's bandwidth. It is taken to be 64 bytes per clock and processor on
# NVIDIA's GPUs. On AMD's it is 128 bytes per clock and channel: there are 16 channels in each of 8 chiplets,
# and each chiplet has a cache of its own. Neither the sparse nor the dense network is granted anything of the
# Infinity Cache behind these.
GPUS = {
    "A100 40GB": GPU("sm_80", 108, 1.41e9, 128, 1.555e12, 108 * 64 * 1.41e9, 156e12, 10 << 20),
    "H100 SXM": GPU("sm_90", 132, 1.83e9, 128, 3.35e12, 132 * 64 * 1.83e9, 495e12, 50 << 18),
    "H200": GPU("sm_90", 132, 1.83e9, 128, 4.8e12, 132 * 64 * 1.83e9, 495e12, 60 << 18),
    "RTX 4090": GPU("sm_89", 128, 2.52e9, 128, 1.008e12, 128 * 64 * 2.52e9, 82.6e12, 18 << 20),
    "L4": GPU("sm_89", 58, 2.04e9, 128, 0.3e12, 58 * 64 * 2.04e9, 60.5e12, 12 << 20),
    "MI300X": GPU("gfx942", 304, 2.1e9, 64, 5.3e12, 128 * 128 * 2.1e9, 653e12, 0),
}


@dataclass(frozen=True)
class Predicted:
    """State how many seconds each part of the GPU takes for a launch at its peak.

    Attributes:
        memory: Of the memory.
        cache: Of the second-level cache.
        tensor: Of the tensor cores.
        issue: Of the schedulers.
        waiting: What the programs of a processor wait for memory, one after the other.
    """

    memory: float
    cache: float
    tensor: float
    issue: float
    waiting: float

    def seconds(self, fraction: float = 1.0, launch: float = LAUNCH) -> float:
        """Return the seconds of the launch.

        Args:
            fraction: The fraction (0 to 1) of its peak that every part reaches.
            launch: Seconds from the launch before to this one.
        """
        busiest = max(self.memory, self.cache, self.tensor, self.issue)
        return max(busiest / fraction, self.waiting) + launch


def moved(work: Work, cached: int) -> int:
    """Return the bytes to and from memory, where the cache keeps ``cached`` bytes of hidden channels."""
    return work.read + work.written - (work.hidden if work.buffer <= cached else 0)


def predict(launch: Launch, gpu: GPU) -> Predicted:
    """Predict how long a launch takes, in the tile that it would have on the GPU.

    Raises:
        ValueError: If the compiled kernel has another number of loops than its work counts.
    """
    launch, compiled = compile_for(gpu.architecture, launch)
    work = count_work(launch)
    programs = launch.grid[0] * launch.grid[1] * launch.grid[2]
    if len(work.trips) != len(compiled.loops):
        raise ValueError(
            f"{launch.kernel.__name__} has {len(compiled.loops)} loops on {gpu.architecture}; "
            f"its count knows {len(work.trips)}"
        )
    threads = launch.tile.warps * (64 if is_amd(gpu.architecture) else 32)
    in_loops = sum(n * loop for n, loop in zip(work.trips, compiled.loops, strict=True))
    issued = programs * compiled.outside + in_loops
    waits = 1 + sum(n for n, waits in zip(work.trips, compiled.waits, strict=True) if waits) / programs
    at_once = gpu.processors * compiled.resident(gpu.architecture, launch.tile.warps)
    busy = programs / -(
        -programs // gpu.processors
    )  # processors on average: some run a program more than others
    return Predicted(
        memory=moved(work, gpu.cached) / gpu.memory,
        cache=(work.fetched + work.written) / (busy / gpu.processors * gpu.cache),
        tensor=work.macs / (busy / gpu.processors * gpu.tensor),
        issue=issued * threads / (busy * gpu.lanes * gpu.clock),
        waiting=-(-programs // at_once) * waits * LATENCY / gpu.clock,
    )
