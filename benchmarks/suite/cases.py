"""Define what the suite compares: ops, whole networks, and networks by density, size, batch and threads.

Weights are random (`tickets.network`).
Time depends on which weights are zero, not on the values of the others.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import median
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from benchmarks.suite.results import now
from benchmarks.suite.rows import Facts, Row, Section
from benchmarks.suite.tickets import network
from mirl_kernels import registry
from mirl_kernels.core.cpu import Packed
from mirl_kernels.core.roofline import measure
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.defaults import TICKET
from mirl_sparse.performance.comparison import Candidate, Comparison
from mirl_sparse.performance.environment import environment
from mirl_sparse.performance.oracle import expected
from mirl_sparse.performance.peers import COMPILED, DENSE, STOCK, in_channels_last
from mirl_sparse.runtime.allocator import Allocator
from mirl_sparse.runtime.cpu import CpuEngine
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.tickets import describe, find_ticket, load_network

DENSITIES = (0.01, 0.0352, 0.107, 0.2, 0.35, 0.5, 0.75, 1.0)
OP_DENSITIES = (0.01, 0.035, 0.1, 0.2, 0.5, 1.0)
TENTH = 0.1


class Sparse(NamedTuple):
    """Hold one sparse way to run a network or an op.

    Attributes:
        module: The call that is timed.
        stands_for: The dense module that should give the same result.
        facts: What its row of the results says beside the times.
    """

    module: Callable[[Tensor], Tensor]
    stands_for: nn.Module
    facts: Facts


class Subjects(NamedTuple):
    """Hold a dense network or op, its sparse forms, and the image that they are compared on.

    Attributes:
        dense: The dense network or op.
        image: The input, (B, C, H, W) float32.
        sparse: The sparse forms, by name.
        absent: Why a form could not be built, by name.
    """

    dense: nn.Module
    image: Tensor
    sparse: dict[str, Sparse]
    absent: dict[str, str] = {}  # noqa: RUF012


@dataclass(frozen=True)
class Case:
    """Define one comparison of the suite.

    Attributes:
        section: Section of the results.
        name: Name of the case.
        build: Makes what is compared.
        runs: Number of rounds.
        dense: Names of the dense contenders. If it is empty, they are the `strongest` of the case ``ranked``.
        ranked: Name of the case that tells which dense contenders are the strongest.
        threads: Number of threads; None for all.
        facts: What every row of the case says.
    """

    section: Section
    name: str
    build: Callable[[], Subjects]
    runs: int
    dense: tuple[str, ...]
    ranked: str = ""
    threads: int | None = None
    facts: Facts = field(default_factory=lambda: Facts())

    def __str__(self) -> str:
        return f"{self.section}: {self.name}"

    @torch.no_grad()
    def comparison(self, rows: list[Row]) -> tuple[Comparison, dict[str, Facts]]:
        """Build the contenders of this case and check their results.

        Args:
            rows: Rows that were measured before.

        Returns:
            The comparison, and the facts about each sparse contender by its name.
        """
        dense, image, sparse, absent = self.build()
        torch._dynamo.reset()
        names = self.dense or strongest(rows, self.ranked)
        answers: dict[int, Tensor] = {}
        for module in (dense, *(s.stands_for for s in sparse.values())):
            if id(module) not in answers:
                answers[id(module)] = expected(module, image)
        candidates = {name: Candidate(s.module, answers[id(s.stands_for)]) for name, s in sparse.items()}
        comparison = Comparison(dense, answers[id(dense)], candidates, image, names)
        comparison.left_out |= absent
        return comparison, {name: s.facts for name, s in sparse.items()}


# A dense run that takes up to this many times as long as the strongest may be the strongest at another size.
_NEAR = 1.1


def strongest(rows: list[Row], case: str) -> tuple[str, ...]:
    """Return the dense contenders that sweeps go on with.

    They are PyTorch by default, the runs that are about as fast as the fastest of a case, and the fastest run
    that PyTorch does not compile. Slower runs are left out, since compiling takes minutes at every size.

    Args:
        rows: Rows that were measured before.
        case: Name of the case that ranks the dense runs. If it was not measured, all dense contenders are
            returned.
    """
    dense = {
        r["contender"]: r["median"]
        for r in rows
        if r.get("case") == case and r["contender"] in DENSE and "median" in r
    }
    names = sorted(dense.keys() - {STOCK}, key=lambda name: float(dense[name]))
    near = [name for name in names if dense[name] <= _NEAR * dense[names[0]]]
    other = [n for n in names if n not in COMPILED][:1]
    return (STOCK, *dict.fromkeys(near + other)) if names else tuple(DENSE)


class Op(nn.Module):
    """Run an op by its definition in PyTorch, with its weights."""

    def __init__(self, function: Callable[..., Tensor], *weights: Any, **options: Any) -> None:
        super().__init__()
        self._function, self._options, self._count = function, options, 0
        self._shape = [self._register(w) for w in weights]

    def _register(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return [self._register(v) for v in value]
        self.register_buffer(f"weight{self._count}", value)
        self._count += 1
        return f"weight{self._count - 1}"

    def _weights(self, shape: Any) -> Any:
        return tuple(map(self._weights, shape)) if isinstance(shape, list) else getattr(self, shape)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x, *map(self._weights, self._shape), **self._options)


def _build(name: str, c: int, density: float) -> tuple[Op, Packed]:
    """Return an op of c channels as PyTorch runs it, and packed."""
    op = registry.OPS[name]
    example = op.example(c, density)
    packed = op.packed.from_weights(*example.weights, **example.options)
    assert isinstance(packed, Packed)
    return Op(op.reference, *example.weights, **example.options), packed


def _torch_sparse(weight: Tensor) -> tuple[dict[str, Callable[[Tensor], Tensor]], dict[str, str]]:
    """Return a 1x1 convolution by each of PyTorch's sparse formats, and why the others do not run here."""
    matrix = weight.flatten(1)
    convolutions: dict[str, Callable[[Tensor], Tensor]] = {}
    absent = {}
    formats = {
        "torch CSR": lambda: matrix.to_sparse_csr(),
        "torch BSR 4x4": lambda: matrix.to_sparse_bsr((4, 4)),
        "torch 2:4": lambda: torch.sparse.to_sparse_semi_structured(matrix),
    }
    for name, make in formats.items():
        try:
            packed = make()
            packed @ torch.rand(matrix.shape[1], 16)
        except Exception as error:  # each format raises its own; the report prints the reason
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        convolutions[name] = partial(_multiply, packed)
    return convolutions, absent


def _multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """Apply a matrix to the channels of an image (1, C, H, W)."""
    return (matrix @ x[0].flatten(1)).view(1, -1, *x.shape[2:])


def _op(name: str, c: int, side: int, densities: tuple[float, ...]) -> Subjects:
    """Return an op of c channels on a square image, sparse in several densities."""
    torch.manual_seed(0)
    image = torch.randn(1, c, side, side)
    sparse: dict[str, Sparse] = {}
    absent: dict[str, str] = {}
    dense, _ = _build(name, c, 1.0)
    for density in densities:
        stands_for, packed = _build(name, c, density)
        macs, moved = packed.work(1, side, side)
        sparse[f"sparse cpu {density:.1%}"] = Sparse(
            packed, stands_for, Facts(density=density, macs=macs, bytes=moved)
        )
        if name == "pointwise":
            convolutions, reasons = _torch_sparse(stands_for.get_buffer("weight0"))
            absent |= reasons
            for other, call in convolutions.items():
                sparse[f"{other} {density:.1%}"] = Sparse(call, stands_for, Facts(density=density))
    return Subjects(dense, image, sparse, absent)


@cache
def _pruned(criterion: str, density: float) -> PromptIR:
    return load_network(find_ticket(TICKET)) if criterion == "small" else network(criterion, density)


def _restorers(tickets: tuple[tuple[str, float], ...], batch: int, height: int, width: int) -> Subjects:
    """Return tickets of one architecture beside the dense network of the first ticket."""
    image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    sparse = {}
    for criterion, density in tickets:
        pruned = _pruned(criterion, density)
        work = [op.work(*shape) for op, shape in CpuEngine(pruned).calls(batch, height, width)]
        facts = Facts(
            criterion=criterion,
            density=density,
            macs=sum(w.macs for w in work),
            bytes=sum(w.bytes for w in work),
        )
        sparse[f"sparse cpu {criterion} {density:.1%}"] = Sparse(SparseRestorer(pruned, "cpu"), pruned, facts)
    return Subjects(_pruned(*tickets[0]), image, sparse)


SMALL = (("small", describe(load_network(find_ticket(TICKET))).statistics["density"]),)
FULL10 = (("layerwise", 0.107),)
HEADLINE = (*FULL10, ("layerwise", 0.0352), ("uneven", TENTH), ("uneven", 0.0352), ("layerwise", 1.0))
SWEEP = tuple((c, d) for c in ("layerwise", "uneven") for d in DENSITIES if (c, d) != ("uneven", 1.0))
TICKETS = {"small": SMALL, "full-size": FULL10}
OPS = (
    *(("mdta", 96), ("mdta", 192), ("gdfn", 96), ("gdfn", 192), ("block", 384)),
    *(("pointwise", 96), ("conv", 96), ("depthwise", 96), ("prompt", 96)),
)  # and the channels of their inputs
SIDE = {96: 128, 192: 64, 384: 32}  # of the levels of a 256x256 image
# XNNPACK takes a minute and more to build a network.
OF_SMALL = tuple(name for name in DENSE if name != "dense XNNPACK")
OF_QUICK = tuple(name for name in OF_SMALL if name not in COMPILED)
OF_OPS = *OF_QUICK, "dense XNNPACK", "dense compiled"
# Compiled in channels_last it took 4% longer, and minutes more to compile.
OF_FULL = *OF_QUICK, "dense compiled", "dense compiled bfloat16"


def _op_case(
    section: Section, op: str, c: int, densities: tuple[float, ...], runs: int, dense: tuple[str, ...]
) -> Case:
    """Return the case of one op, with c channels."""
    build = partial(_op, op, c, SIDE[c], densities)
    return Case(section, f"{op} {c} channels {SIDE[c]}x{SIDE[c]}", build, runs, dense, facts={"op": op})


def _network_case(
    section: Section,
    name: str,
    setting: str,
    shape: tuple[int, int, int],
    runs: int,
    dense: tuple[str, ...] = (),
    tickets: tuple[tuple[str, float], ...] = (),
    threads: int | None = None,
) -> Case:
    """Return the case of a network for images of a shape (B, H, W)."""
    build = partial(_restorers, tickets or TICKETS[name], *shape)
    return Case(
        section, f"{name} {setting}", build, runs, dense, f"{name} 256x256", threads, {"network": name}
    )


def _sweeps(name: str, sides: tuple[int, ...], batches: tuple[int, ...]) -> list[Case]:
    """Return the cases that `results.sweep` needs beside the sections "network" and "density"."""
    return [
        *(_network_case("size", name, f"{s}x{s}", (1, s, s), 5 if s < 300 else 3) for s in sides),
        *(_network_case("batch", name, f"{b} x 64x64", (b, 64, 64), 7) for b in batches),
        _network_case("threads", name, "128x128 on one thread", (1, 128, 128), 7, threads=1),
    ]


_ROUNDS = 45
QUICK = [
    *(_op_case("quick", op, 96, (TENTH,), _ROUNDS, OF_QUICK) for op in ("mdta", "gdfn", "conv")),
    # With 96 channels the time would be that of the memory.
    _op_case("quick", "pointwise", 384, (TENTH,), _ROUNDS, OF_QUICK),
    _network_case("quick", "small", "128x128", (1, 128, 128), _ROUNDS, OF_QUICK),
]
CASES = [
    _network_case("network", "full-size", "256x256", (1, 256, 256), 7, OF_FULL, HEADLINE),
    _network_case("network", "small", "256x256", (1, 256, 256), 11, OF_SMALL),
    *_sweeps("small", (64, 128, 512, 1024), (2, 8)),
    *(_op_case("op", op, c, OP_DENSITIES, 9, OF_OPS) for op, c in OPS),
    _network_case("density", "full-size", "128x128", (1, 128, 128), 5, tickets=SWEEP),
    *_sweeps("full-size", (64,), ()),
]


@torch.no_grad()
def profile(name: str, runs: int = 5) -> Row:
    """Time each stage of a network at 256x256, sparse and dense in turns.

    Args:
        name: A name of `TICKETS`.
        runs: Number of rounds.

    Returns:
        The row of the results: median seconds by stage, sparse and by PyTorch in channels_last, and the
        seconds that the measured peaks of the machine allow all sparse steps at best.
    """
    pruned, image = _pruned(*TICKETS[name][0]), torch.rand(1, 3, 256, 256)
    Allocator().tune()  # for the dense network
    engine, machine = CpuEngine(pruned), measure()
    stages = [n for n, m in pruned.named_children() if list(m.parameters())]
    dense, dense_image = in_channels_last(pruned, image)
    dense_times: dict[str, list[float]] = {}
    sparse_times: dict[str, list[float]] = {}
    limit = 0.0
    with _timed_stages(dense, stages, dense_times):
        for run in range(runs + 1):
            dense(dense_image)
            steps, seconds_by_stage, limit = engine.profile(image), defaultdict[str, float](float), 0.0
            for step in steps:
                seconds_by_stage[step.name.split(".")[0]] += step.seconds
                limit += machine.limit(step.macs, step.bytes)
            if run:  # the first is not warm
                for stage, seconds in seconds_by_stage.items():
                    sparse_times.setdefault(stage, []).append(seconds)
    sparse_stages = {stage: median(times) for stage, times in sparse_times.items()}
    row = {
        "section": "profile",
        "network": name,
        "dense_stages": {stage: median(times[1:]) for stage, times in dense_times.items()},
        "sparse_stages": sparse_stages,
        "sparse": sum(sparse_stages.values()),
        "limit": limit,
        "runs": runs,
        "gflops_peak": machine.flops / 1e9,
        "gbytes_peak": machine.bandwidth / 1e9,
        **environment().to_dict(),
        "date": now(),
    }
    return cast(Row, row)


@contextmanager
def _timed_stages(network: nn.Module, stages: list[str], times: dict[str, list[float]]) -> Iterator[None]:
    """Append the seconds of each call of these modules to their times."""
    began: dict[str, float] = {}

    def begin(stage: str, *_: Any) -> None:
        began[stage] = time.perf_counter()

    def end(stage: str, *_: Any) -> None:
        times.setdefault(stage, []).append(time.perf_counter() - began[stage])

    hooks = []
    for stage in stages:
        module = network.get_submodule(stage)
        hooks.append(module.register_forward_pre_hook(partial(begin, stage)))
        hooks.append(module.register_forward_hook(partial(end, stage)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
