"""What the suite compares: the ops, the whole network, and the network by density, size, batch and threads.

Weights are random (`tickets.network`): time depends on which weights are zero, not on what the others are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import median
from typing import Any, NamedTuple

import torch
from results import Row, now
from tickets import network
from torch import Tensor, nn

from mirl_kernels import registry
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
    """A sparse way to run something: what is called, what it stands for, and facts for its row of the results."""

    module: Callable[[Tensor], Tensor]
    stands_for: nn.Module
    facts: dict[str, Any]


class Subjects(NamedTuple):
    """A dense network or op, an image, and what is compared on it; ``absent`` are names of what could not be built, and why."""

    dense: nn.Module
    image: Tensor
    sparse: dict[str, Sparse]
    absent: dict[str, str] = {}  # noqa: RUF012


@dataclass(frozen=True)
class Case:
    """One comparison of the suite, of ``runs`` rounds."""

    section: str
    name: str
    build: Callable[[], Subjects]
    runs: int
    dense: tuple[str, ...]  # or none: the `strongest` of the case ``ranked``
    ranked: str = ""
    threads: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.section}: {self.name}"

    @torch.no_grad()
    def comparison(self, rows: list[Row]) -> tuple[Comparison, dict[str, dict[str, Any]]]:
        """The contenders, each compared with what it should give; and what is known of each sparse one. ``rows`` are what was
        measured before."""
        dense, image, sparse, absent = self.build()
        torch._dynamo.reset()
        names = self.dense or strongest(rows, self.ranked)
        right: dict[int, Tensor] = {}
        for module in (dense, *(s.stands_for for s in sparse.values())):
            if id(module) not in right:
                right[id(module)] = expected(module, image)
        candidates = {name: Candidate(s.module, right[id(s.stands_for)]) for name, s in sparse.items()}
        comparison = Comparison(dense, right[id(dense)], candidates, image, names)
        comparison.left_out |= absent
        return comparison, {name: s.facts for name, s in sparse.items()}


_NEAR = (
    1.1  # times the strongest dense run's time: what takes that at one size may be the strongest at another
)


def strongest(rows: list[Row], case: str) -> tuple[str, ...]:
    """What sweeps go on with: PyTorch by default, the dense runs that are about as strong as the strongest of a case, and the
    strongest that PyTorch does not compile: what is slower is not compiled for minutes at every size. All of them, if the case was
    not measured."""
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
    """The definition of an op with its weights, as PyTorch runs it."""

    def __init__(self, function: Callable[..., Tensor], *weights: Any, **options: Any) -> None:
        super().__init__()
        self._function, self._options, self._count = function, options, 0
        self._shape = [self._keep(w) for w in weights]

    def _keep(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return [self._keep(v) for v in value]
        self.register_buffer(f"weight{self._count}", value)
        self._count += 1
        return f"weight{self._count - 1}"

    def _kept(self, shape: Any) -> Any:
        return tuple(map(self._kept, shape)) if isinstance(shape, list) else getattr(self, shape)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x, *map(self._kept, self._shape), **self._options)


def _build(name: str, c: int, density: float) -> tuple[nn.Module, nn.Module]:
    """An op of c channels as PyTorch runs it, and packed."""
    op = registry.OPS[name]
    example = op.example(c, density)
    packed = op.packed.from_weights(*example.weights, **example.options)
    return Op(op.reference, *example.weights, **example.options), packed


def _torch_sparse(weight: Tensor) -> tuple[dict[str, Callable[[Tensor], Tensor]], dict[str, str]]:
    """A 1x1 convolution by PyTorch's own sparse matrices, and which of them do not run here."""
    matrix = weight.flatten(1)
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    absent = {}
    formats = {"torch CSR": lambda: matrix.to_sparse_csr(), "torch BSR 4x4": lambda: matrix.to_sparse_bsr((4, 4)),
               "torch 2:4": lambda: torch.sparse.to_sparse_semi_structured(matrix)}  # fmt: skip
    for name, make in formats.items():
        try:
            packed = make()
            packed @ torch.rand(matrix.shape[1], 16)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        found[name] = lambda x, packed=packed: (packed @ x[0].flatten(1)).view(1, -1, *x.shape[2:])  # type: ignore[misc]
    return found, absent


def _op(name: str, c: int, side: int, densities: tuple[float, ...]) -> Subjects:
    torch.manual_seed(0)
    image, sparse, absent = torch.randn(1, c, side, side), {}, {}
    dense, _ = _build(name, c, 1.0)
    for density in densities:
        stands_for, packed = _build(name, c, density)
        macs, moved = packed.work(1, side, side)
        sparse[f"sparse cpu {density:.1%}"] = Sparse(
            packed, stands_for, {"density": density, "macs": macs, "bytes": moved}
        )
        if name == "pointwise":
            others, why = _torch_sparse(stands_for.weight0)
            absent |= why
            for other, call in others.items():
                sparse[f"{other} {density:.1%}"] = Sparse(call, stands_for, {"density": density})
    return Subjects(dense, image, sparse, absent)


@cache
def _pruned(criterion: str, density: float) -> PromptIR:
    return load_network(find_ticket(TICKET)) if criterion == "small" else network(criterion, density)


def _restorers(tickets: tuple[tuple[str, float], ...], batch: int, height: int, width: int) -> Subjects:
    """Tickets of one architecture beside its dense network, which is the first one's."""
    image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    sparse = {}
    for criterion, density in tickets:
        made = _pruned(criterion, density)
        work = [op.work(*shape) for op, shape in CpuEngine(made).calls(batch, height, width)]
        facts = {"criterion": criterion, "density": density, "macs": sum(w.macs for w in work),
                 "bytes": sum(w.bytes for w in work)}  # fmt: skip
        sparse[f"sparse cpu {criterion} {density:.1%}"] = Sparse(SparseRestorer(made, "cpu"), made, facts)
    return Subjects(_pruned(*tickets[0]), image, sparse)


SMALL = (("small", describe(load_network(find_ticket(TICKET))).statistics["density"]),)
FULL10 = (("layerwise", 0.107),)
HEADLINE = (*FULL10, ("layerwise", 0.0352), ("uneven", TENTH), ("uneven", 0.0352), ("layerwise", 1.0))
SWEEP = tuple((c, d) for c in ("layerwise", "uneven") for d in DENSITIES if (c, d) != ("uneven", 1.0))
TICKETS = {"small": SMALL, "full-size": FULL10}
OPS = (("mdta", 96), ("mdta", 192), ("gdfn", 96), ("gdfn", 192), ("block", 384), ("pointwise", 96), ("conv", 96), ("depthwise", 96),
       ("prompt", 96))  # fmt: skip
SIDE = {96: 128, 192: 64, 384: 32}  # of the levels of a 256x256 image
OF_SMALL = tuple(
    name for name in DENSE if name != "dense XNNPACK"
)  # which takes a minute and more to build a network
OF_QUICK = tuple(name for name in OF_SMALL if name not in COMPILED)
OF_OPS = *OF_QUICK, "dense XNNPACK", "dense compiled"
# Compiled in channels_last it took 4% longer, and minutes more to compile.
OF_FULL = *OF_QUICK, "dense compiled", "dense compiled bfloat16"


def _op_case(
    section: str, op: str, c: int, densities: tuple[float, ...], runs: int, dense: tuple[str, ...]
) -> Case:
    build = partial(_op, op, c, SIDE[c], densities)
    return Case(section, f"{op} {c} channels {SIDE[c]}x{SIDE[c]}", build, runs, dense, facts={"op": op})


def _network_case(section: str, name: str, what: str, shape: tuple[int, int, int], runs: int, dense: tuple[str, ...] = (),
                  tickets: tuple[tuple[str, float], ...] = (), threads: int | None = None) -> Case:  # fmt: skip
    build = partial(_restorers, tickets or TICKETS[name], *shape)
    return Case(section, f"{name} {what}", build, runs, dense, f"{name} 256x256", threads, {"network": name})


def _sweeps(name: str, sides: tuple[int, ...], batches: tuple[int, ...]) -> list[Case]:
    """What `results.sweep` wants beside the sections "network" and "density"."""
    return [
        *(_network_case("size", name, f"{s}x{s}", (1, s, s), 5 if s < 300 else 3) for s in sides),
        *(_network_case("batch", name, f"{b} x 64x64", (b, 64, 64), 7) for b in batches),
        _network_case("threads", name, "128x128 on one thread", (1, 128, 128), 7, threads=1),
    ]


_ROUNDS = 45
QUICK = [
    *(_op_case("quick", op, 96, (TENTH,), _ROUNDS, OF_QUICK) for op in ("mdta", "gdfn", "conv")),
    # Of 96 channels it is the memory that would be timed.
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
def profile(name: str, runs: int = 5) -> dict[str, Any]:
    """The time of each stage of a network at 256x256, sparse beside PyTorch in channels_last, in turns; and what the measured
    peaks of the machine would allow the sparse steps."""
    made, image = _pruned(*TICKETS[name][0]), torch.rand(1, 3, 256, 256)
    Allocator().tune()  # for the dense one's sake
    engine, machine = CpuEngine(made), measure()
    stages = [n for n, m in made.named_children() if list(m.parameters())]
    dense, last = in_channels_last(made, image)
    times: dict[str, list[float]] = {}
    begun: dict[str, float] = {}
    hooks = []
    for stage in stages:
        module = dense.get_submodule(stage)
        hooks.append(
            module.register_forward_pre_hook(lambda *_, s=stage: begun.__setitem__(s, time.perf_counter()))
        )
        hooks.append(module.register_forward_hook(
            lambda *_, s=stage: times.setdefault(s, []).append(time.perf_counter() - begun[s])
        ))  # fmt: skip
    sparse: dict[str, list[float]] = {}
    limit = 0.0
    for run in range(runs + 1):
        dense(last)
        steps, found, limit = engine.profile(image), Counter[str](), 0.0
        for step in steps:
            found[step.name.split(".")[0]] += step.seconds
            limit += machine.limit(step.macs, step.bytes)
        if run:  # the first is not warm
            for stage, seconds in found.items():
                sparse.setdefault(stage, []).append(seconds)
    for hook in hooks:
        hook.remove()
    sparse_stages = {stage: median(s) for stage, s in sparse.items()}
    return {
        "section": "profile", "network": name, "dense_stages": {s: median(t[1:]) for s, t in times.items()},
        "sparse_stages": sparse_stages, "sparse": sum(sparse_stages.values()), "limit": limit, "runs": runs,
        "gflops_peak": machine.flops / 1e9, "gbytes_peak": machine.bandwidth / 1e9, **environment().to_dict(), "date": now(),
    }  # fmt: skip
