"""Define the rows of the results, one per line of ``results/*/*.jsonl``.

Times are in seconds. A row has the keys of its section only, so that no key is required; `Row` lists all of
them by what they tell.
"""

from __future__ import annotations

from typing import Literal, TypedDict

Kind = Literal["cold", "memory", "instructions"]  # of what a process measures
Section = Kind | Literal["network", "size", "batch", "threads", "op", "density", "quick", "profile"]


class Ratio(TypedDict):
    """Hold a ratio of times.

    Attributes:
        ratio: Median of the ratios by round; 2.0 means twice as fast.
        low: Lower end of its 95% confidence interval.
        high: Upper end of that interval.
    """

    ratio: float
    low: float
    high: float


class Speedup(Ratio):
    """Hold the ratio of a dense contender's time to a sparse one's.

    Attributes:
        over: Name of the dense contender.
    """

    over: str


class Facts(TypedDict, total=False):
    """Hold what a row says about the op or the network that it is about.

    Attributes:
        op: Name of the op.
        network: "small" or "full-size".
        criterion: How its weights are pruned: "small" (the shipped ticket), "layerwise" or "uneven".
        density: Fraction of the prunable weights that are not zero.
        macs: Multiply-adds by surviving weights.
        bytes: Bytes that must move at least.
    """

    op: str
    network: str
    criterion: str
    density: float
    macs: int
    bytes: int


class Conditions(TypedDict, total=False):
    """Hold the machine and the software that a row was measured on.

    Attributes:
        processor: Name of the processor.
        threads: Number of threads.
        isa: Instruction set of the kernels.
        torch: Version of PyTorch.
        python: Version of Python.
        allocator: "tuned" or "default".
        date: Time in UTC, to the minute.
    """

    processor: str
    threads: int
    isa: str
    torch: str
    python: str
    allocator: str
    date: str


class ContenderTimes(TypedDict, total=False):
    """Hold the times of one contender of a comparison.

    Attributes:
        median: Median of all rounds.
        p20: 20% percentile.
        p80: 80% percentile.
        times: Seconds by round; earlier suites did not store them.
        first_call: Seconds until the first result, building the contender included.
        second_call: Seconds of the first call after that.
        difference: Largest difference from the right result, relative to its largest value (at least 1).
        speedup: Speed-up over the strongest dense contender; sparse contenders only.
        over_default: Speed-up over PyTorch by default; sparse contenders only.
    """

    median: float
    p20: float
    p80: float
    times: list[float]
    first_call: float
    second_call: float
    difference: float
    speedup: Speedup
    over_default: Speedup


# By a call, since "import" is no identifier: seconds of the steps of a process, and its memory in bytes.
_Steps = TypedDict(
    "_Steps",
    {"import": float, "load": float, "build": float, "first": float, "second": float},
    total=False,
)


class Figures(_Steps, Conditions, total=False):
    """Hold the figures of one process.

    Attributes:
        peak_bytes: Peak of its memory.
        instructions: Number of instructions of one call.
    """

    peak_bytes: int
    instructions: int


class Profile(TypedDict, total=False):
    """Hold where a network spends its time.

    Attributes:
        dense_stages: Median seconds by stage, by PyTorch in channels_last.
        sparse_stages: Median seconds by stage, sparse.
        sparse: Seconds of all sparse steps.
        limit: Seconds that the measured peaks of the machine allow all sparse steps at best.
        gflops_peak: Measured peak of the processor.
        gbytes_peak: Measured peak of the memory, in GB a second.
    """

    dense_stages: dict[str, float]
    sparse_stages: dict[str, float]
    sparse: float
    limit: float
    gflops_peak: float
    gbytes_peak: float


class Row(ContenderTimes, Figures, Profile, Facts, total=False):
    """Hold one row of the results.

    Attributes:
        section: Section of the results.
        case: Name of the case.
        shape: Shape of the input, (B, C, H, W).
        contender: Name of the contender, which is a way to run an op or a network.
        left_out: Why the contender was not timed.
        pixels: Pixels of the image that a process restores.
        runs: Number of rounds.
    """

    section: Section
    case: str
    shape: list[int]
    contender: str
    left_out: str
    pixels: int
    runs: int
