"""List the stages of the benchmark, in the order of their worth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Describe a stage.

    Attributes:
        name: One word.
        limit: Seconds after which its process is ended; what it has written until then counts.
        source: Its module and the function in it, "module:function", which yields the figures, the most
            important ones first.
        purpose: What it measures.
    """

    name: str
    limit: float
    source: str
    purpose: str


STAGES = (
    Stage("machine", 40, "benchmarks.gpu.machine:describe", "the GPU, its clocks, versions"),
    Stage("peaks", 25, "benchmarks.gpu.machine:peaks", "copies, tensor cores, launches"),
    Stage("compile", 60, "benchmarks.gpu.kernels:compile_all", "all kernels at once, on all processors"),
    Stage("parity", 90, "benchmarks.gpu.parity:ops", "every op against its reference in float64, mdta first"),
    Stage(
        "network",
        50,
        "benchmarks.gpu.network:correctness",
        "a network against float64, graphs, streams, memory",
    ),
    Stage(
        "headline",
        75,
        "benchmarks.gpu.network:headline",
        "256x256: sparse, eager, channels_last, compiled, in turns",
    ),
    Stage(
        "kernels", 60, "benchmarks.gpu.kernels:times", "each launch, each dense step, and their predictions"
    ),
    Stage("sizes", 75, "benchmarks.gpu.network:sizes", "1024x1024 and its launches, eight images of 256x256"),
    Stage(
        "strongest",
        120,
        "benchmarks.gpu.network:strongest",
        "the strongest dense network: max-autotune, channels_last",
    ),
    Stage("tiles", 50, "benchmarks.gpu.kernels:tiles", "other tiles of the slowest kernels"),
    Stage("counters", 50, "benchmarks.gpu.kernels:counters", "hardware counters, and a memory checker"),
)
