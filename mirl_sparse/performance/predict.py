"""What a ticket would take on GPUs, beside the dense network: predictions, since no GPU has confirmed them.

The sparse network's come from its launches (`mirl_kernels.core.triton.model`). The dense network's favour it: every operator reads
and writes its tensors once at the full bandwidth of the memory, those that fit in a quarter of the cache not at all, multiplies at
the peak of the tensor cores, and, where it is compiled, whatever is not a convolution or matrix product is fused as far as
dependencies allow. Depthwise convolutions, which are far from that on GPUs, are granted it too. From one kernel to the next it takes
either network the same time, PyTorch as it is longer where the processor cannot launch as fast. Of the sparse network only hidden
channels and sums of Gram matrices are taken to stay in the cache, not its features, though what it writes there takes the cache's
time. A step is left to dense operators where these would take less time, at DERATED of every peak, than its sparse kernels at the
peaks. Nor do latencies count: where few programs share a processor, as sums of Gram matrices of small images do, what waits for
memory may not be hidden behind what computes, and takes longer than predicted even at DERATED.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mirl_kernels.core.triton import Launch, Work, Workspace, work
from mirl_kernels.errors import BackendError
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.program import Step
from mirl_sparse.runtime.triton import PRECISIONS, PackedNetwork, check_package, launches

if TYPE_CHECKING:
    from mirl_kernels.core.triton.model import GPU, Predicted

DERATED = 0.6  # of every peak, for the row that asks what remains where nothing reaches its peak


@dataclass
class _Operator:
    """What a dense operator, or several that are fused, reads and writes, in bytes by tensor, and multiplies; what was ``made`` by an
    operator before may be in the cache."""

    tensors: list[tuple[int, bool]]
    macs: int = 0

    def moved(self, cached: int = 0) -> int:
        """Bytes to and from memory, where the cache keeps what one operator makes for the next of ``cached`` bytes at most."""
        return sum(size for size, made in self.tensors if not made or size > cached)

    def seconds(self, gpu: GPU, launch: float, fraction: float = 1.0, least: float = 0.0) -> float:
        """On a GPU that is at a ``fraction`` of its peaks, with its ``launch``; at ``least`` so much, where the processor that launches
        is slower."""
        return max(
            max(self.moved(gpu.cached) / gpu.memory, self.macs / gpu.tensor) / fraction + launch, least
        )


@dataclass(frozen=True)
class Prediction:
    """Seconds on a GPU: of the dense network as PyTorch runs it and compiled, and of the sparse one, also at DERATED of every
    peak; bytes to and from memory, of the dense network as PyTorch runs it and of the sparse one, its launches, and the steps that
    it leaves to dense operators, which are taken to be at DERATED of the peaks anyway."""

    gpu: str
    eager: float
    compiled: float
    sparse: float
    sparse_derated: float
    eager_bytes: int
    sparse_bytes: int
    launches: int
    dense_steps: tuple[str, ...]


class _Recorder(TorchDispatchMode):
    """The operators of a forward pass on tensors of no memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: _Calls = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        outputs = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
        name = function.overloadpacket.__name__
        if name == "copy_":
            self.calls.append((name, inputs[1:], outputs, 0))
        elif not function.is_view and any(_storage(o) not in map(_storage, inputs) for o in outputs):
            macs = 0
            if name == "convolution":
                macs = outputs[0].numel() * inputs[1][0].numel()
            elif name in ("bmm", "mm", "addmm"):
                macs = outputs[0].numel() * inputs[-2].shape[-1]
            self.calls.append((name, inputs, outputs, macs))
        return result


def _storage(t: Tensor) -> int:
    return t.untyped_storage()._cdata


_Calls = list[tuple[str, list[Tensor], list[Tensor], int]]


def _operator(made: set[int], read: Iterable[Tensor], written: Iterable[Tensor], macs: int = 0) -> _Operator:
    """One that reads tensors, of which those in ``made`` were made before, and writes others."""
    sides = ({_storage(t): t for t in part} for part in (read, written))
    tensors = [(t, s in made or side == 1) for side, part in enumerate(sides) for s, t in part.items()]
    return _Operator([(t.numel() * t.itemsize, kept) for t, kept in tensors], macs)


def _eager(calls: _Calls) -> list[_Operator]:
    made: set[int] = set()
    found = []
    for _, inputs, outputs, macs in calls:
        found.append(_operator(made, inputs, outputs, macs))
        made |= set(map(_storage, outputs))
    return found


def _compiled(calls: _Calls) -> list[_Operator]:
    """Convolutions and matrix products by themselves; all else fused with what it is connected to and no product lies between."""
    group: dict[int, int] = {}  # of a storage's producer, by storage; -1 - i for a product
    depth: dict[int, int] = {}  # products in front of it
    parent: list[int] = []

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    readers: dict[int, set[int]] = {}
    for i, (_, inputs, outputs, macs) in enumerate(calls):
        level = max((depth.get(_storage(t), 0) + (group.get(_storage(t), 0) < 0) for t in inputs), default=0)
        parent.append(i)
        for t in inputs:
            readers.setdefault(_storage(t), set()).add(i)
            other = group.get(_storage(t), -1)
            if not macs and other >= 0 and depth[_storage(t)] == level:
                parent[root(other)] = root(i)
        for t in outputs:
            group[_storage(t)], depth[_storage(t)] = -1 - i if macs else i, level
    found, every = [], {_storage(t) for _, _, outputs, _ in calls for t in outputs}
    members: dict[int, set[int]] = {}
    for i, (_, inputs, outputs, macs) in enumerate(calls):
        if macs:
            found.append(_operator(every, inputs, outputs, macs))
        else:
            members.setdefault(root(i), set()).add(i)
    for inside in members.values():
        made = {_storage(t): t for i in inside for t in calls[i][2]}
        read = [t for i in inside for t in calls[i][1] if _storage(t) not in made]
        written = [t for s, t in made.items() if s not in readers or readers[s] - inside]
        found.append(_operator(every, read, written))
    return found


def _left(done: Iterable[tuple[Launch, Work]], cached: int) -> int:
    """Bytes of hidden channels that the cache kept, and writes to memory after all when those of another level take their place."""
    kept = (
        (launch.arguments["width"], w.buffer)
        for launch, w in done
        if w.hidden and w.buffer <= cached and "width" in launch.arguments
    )
    return sum(max(size for _, size in level) for _, level in groupby(kept, key=itemgetter(0)))


@torch.no_grad()
def predict(network: PromptIR, shape: tuple[int, int, int], precision: str = "float16", gpus: Iterable[str] | None = None,
            progress: Callable[[str], None] = lambda gpu: None) -> list[Prediction]:  # fmt: skip
    """What ``network`` would take for an image of ``shape`` (batch, height, width), sides multiples of 8, on each of
    `mirl_kernels.core.triton.model.GPUS`, or on those named. Kernels are compiled for each, which takes a minute; ``progress`` is
    told which. BackendError without Triton, or with one that is older than what has been tried."""
    check_package()
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 9):
        raise BackendError(
            f"predictions read what Triton 3.9 compiles, this is {triton.__version__}: pip install -U triton"
        )
    from mirl_kernels.core.triton.model import EAGER_LAUNCH, GPUS, LAUNCH, moved
    from mirl_kernels.core.triton.model import predict as predict_launch
    from mirl_kernels.core.triton.offline import compile_ahead, compile_for

    image = torch.empty(shape[0], 3, *shape[1:], device="meta")
    dense_network, dense_image = (
        deepcopy(network).to("meta", PRECISIONS[precision]),
        image.to(PRECISIONS[precision]),
    )
    with _Recorder() as recorder:
        dense_network(dense_image)
    eager, compiled = _eager(recorder.calls), _compiled(recorder.calls)
    packed, by_step = PackedNetwork(network, PRECISIONS[precision]), {}

    def record(step: Step, *args: Tensor, **more: Tensor) -> None:
        op = packed.dense[step.name].to("meta")
        with _Recorder() as recorder:
            op(*args, **more)
        by_step[step.name] = _eager(recorder.calls)

    packed.run(image, image, record)
    rows = []
    for name in gpus or GPUS:
        gpu = GPUS[name]
        progress(name)
        sparse: list[Launch] = []
        each: list[Predicted] = []
        dense = {}
        steps = launches(packed, shape, Workspace(gpu.cached, gpu.processors))
        compile_ahead(gpu.architecture, chain.from_iterable(steps.values()))
        for step, made in steps.items():
            made = [compile_for(gpu.architecture, launch)[0] for launch in made]
            predicted = [predict_launch(launch, gpu) for launch in made]
            if sum(o.seconds(gpu, LAUNCH, DERATED) for o in by_step[step]) < sum(
                p.seconds() for p in predicted
            ):
                dense[step] = by_step[step]
            else:
                sparse, each = sparse + made, each + predicted
        operators = [o for step in dense.values() for o in step]
        in_dense = sum(o.seconds(gpu, LAUNCH, DERATED) for o in operators)
        done = [work(launch) for launch in sparse]
        left = _left(zip(sparse, done, strict=True), gpu.cached)
        rows.append(
            Prediction(
                name,
                sum(o.seconds(gpu, LAUNCH, least=EAGER_LAUNCH) for o in eager),
                sum(o.seconds(gpu, LAUNCH) for o in compiled),
                sum(p.seconds() for p in each) + left / gpu.memory + in_dense,
                sum(p.seconds(DERATED) for p in each) + left / gpu.memory / DERATED + in_dense,
                sum(o.moved(gpu.cached) for o in eager),
                sum(moved(w, gpu.cached) for w in done) + left + sum(o.moved(gpu.cached) for o in operators),
                len(sparse) + len(operators),
                tuple(dense),
            )
        )
    return rows
