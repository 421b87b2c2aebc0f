"""How long launches would take on GPUs that are not here. Every figure is a prediction: no GPU has confirmed the model.

A launch takes as long as the busiest of four parts of the GPU, each at the same fraction of its peak, and its launch:

- memory: the bytes of the distinct addresses that it reads and writes, but for hidden channels and sums of Gram matrices of which
  the second-level cache keeps all: memory that one launch writes, the next reads and the one after overwrites, of a quarter of
  what the cache holds at most. Features are taken not to be left there, though small ones would be;
- that cache: the bytes that each program fetches once, and those that are written;
- tensor cores: the multiply-adds issued, padding included;
- the schedulers: the instructions issued, counted loop by loop in the kernel as it is compiled for that architecture. What the
  assembler unrolls or drops later is not seen, and every instruction is taken to issue in one cycle of its scheduler (on AMD's,
  whose wave of 64 takes 4 cycles of 16 lanes, in four).

Programs are spread over the processors evenly: some are idle where those that are left over, or all, are fewer. Latencies that too
few warps do not hide are not part of it, nor are bank conflicts, or clocks below the boost clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirl_kernels.core.triton import Launch, Work, work
from mirl_kernels.core.triton.offline import compile_for

LAUNCH = 1.5e-6  # seconds from one kernel to the next in a CUDA graph, sparse or dense: 1 to 2 us are usually quoted
EAGER_LAUNCH = 5e-6  # and where PyTorch launches each from Python


@dataclass(frozen=True)
class GPU:
    """Peaks of a GPU, by its maker's data sheet: processors, their boost clock in Hz, lanes that issue per clock and processor;
    bytes/s of memory and of the second-level cache; float16 multiply-adds/s of the tensor cores with float32 sums (dense);
    ``cached`` bytes can be trusted to stay in the cache, a quarter of what it holds, or none where it is not shared by all."""

    architecture: str
    processors: int
    clock: float
    lanes: int
    memory: float
    cache: float
    tensor: float
    cached: int


# The second-level cache's bandwidth is in no data sheet: 64 bytes per clock and processor on NVIDIA's, 128 bytes per clock and
# channel, of which there are 16 in each of 8 chiplets, on AMD's, each of which keeps its own. Of the Infinity Cache behind them
# neither the sparse nor the dense network is granted anything.
GPUS = {
    "A100 40GB": GPU("sm_80", 108, 1.41e9, 128, 1.555e12, 108 * 64 * 1.41e9, 156e12, 10 << 20),
    "H100 SXM": GPU("sm_90", 132, 1.83e9, 128, 3.35e12, 132 * 64 * 1.83e9, 495e12, 50 << 18),
    "RTX 4090": GPU("sm_89", 128, 2.52e9, 128, 1.008e12, 128 * 64 * 2.52e9, 82.6e12, 18 << 20),
    "L4": GPU("sm_89", 58, 2.04e9, 128, 0.3e12, 58 * 64 * 2.04e9, 60.5e12, 12 << 20),
    "MI300X": GPU("gfx942", 304, 2.1e9, 64, 5.3e12, 128 * 128 * 2.1e9, 653e12, 0),
}


@dataclass(frozen=True)
class Predicted:
    """Seconds that each part of the GPU takes at its peak."""

    memory: float
    cache: float
    tensor: float
    issue: float

    def seconds(self, fraction: float = 1.0) -> float:
        """All together, with every part at ``fraction`` of its peak."""
        return max(self.memory, self.cache, self.tensor, self.issue) / fraction + LAUNCH


def moved(done: Work, cached: int) -> int:
    """Bytes to and from memory, where the cache keeps ``cached`` bytes of hidden channels."""
    return done.read + done.written - (done.hidden if done.buffer <= cached else 0)


def predict(launch: Launch, gpu: GPU) -> Predicted:
    """How long a launch would take."""
    launch, compiled = compile_for(gpu.architecture, launch)
    done = work(launch)
    programs = launch.grid[0] * launch.grid[1] * launch.grid[2]
    if len(done.trips) != len(compiled.loops):
        raise ValueError(
            f"{launch.kernel.__name__} has {len(compiled.loops)} loops on {gpu.architecture}; its count knows {len(done.trips)}"
        )
    threads = launch.tile.warps * (64 if gpu.architecture.startswith("gfx") else 32)
    issued = programs * compiled.outside + sum(
        n * loop for n, loop in zip(done.trips, compiled.loops, strict=True)
    )
    busy = programs / -(-programs // gpu.processors)  # on average: some have a program more than others
    return Predicted(
        memory=moved(done, gpu.cached) / gpu.memory,
        cache=(done.fetched + done.written) / (busy / gpu.processors * gpu.cache),
        tensor=done.macs / (busy / gpu.processors * gpu.tensor),
        issue=issued * threads / (busy * gpu.lanes * gpu.clock),
    )
