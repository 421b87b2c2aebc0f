"""Record the dense operators of a network, and count what they move and multiply on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

if TYPE_CHECKING:
    from mirl_kernels.core.triton.model import GPU


_PRODUCTS = "bmm", "mm", "addmm"


class Kind(str, Enum):
    """Tell apart what reaches different fractions of a GPU's peaks."""

    CONVOLUTION = "convolution"
    POINTWISE = "1x1 convolution"
    DEPTHWISE = "depthwise convolution"
    PRODUCT = "matrix product"
    OTHER = "other"


class Traffic(NamedTuple):
    """Describe one tensor that an operator reads or writes.

    Attributes:
        bytes: Size of the tensor.
        made: Whether an operator made it: then it may be in the cache.
    """

    bytes: int
    made: bool


@dataclass(frozen=True)
class Operator:
    """Describe one dense operator, or several that are fused.

    Attributes:
        tensors: Tensors that it reads and writes.
        macs: Multiply-adds.
        kind: What it is.
    """

    tensors: tuple[Traffic, ...]
    macs: int = 0
    kind: Kind = Kind.OTHER

    def moved(self, cached: int = 0) -> int:
        """Return the bytes to and from memory.

        Args:
            cached: Largest tensor, in bytes, that the cache keeps from one operator to the next.
        """
        return sum(tensor.bytes for tensor in self.tensors if not tensor.made or tensor.bytes > cached)

    def seconds(self, gpu: GPU, launch: float, fraction: float = 1.0, least: float = 0.0) -> float:
        """Return how many seconds the operator takes on a GPU.

        Args:
            gpu: Peaks of the GPU.
            launch: Seconds from one kernel to the next.
            fraction: Fraction of the peaks that is reached.
            least: Seconds that the processor takes to launch it; the operator takes at least as long.
        """
        memory, arithmetic = self.moved(gpu.cached) / gpu.memory, self.macs / gpu.tensor
        return max(max(memory, arithmetic) / fraction + launch, least)


class OperatorCall(NamedTuple):
    """Record one call of an operator of PyTorch, on tensors without memory.

    Attributes:
        inputs: Tensors that it reads.
        outputs: Tensors that it writes.
        macs: Multiply-adds; 0 unless it is a convolution or a matrix product.
        kind: What it is.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    macs: int
    kind: Kind = Kind.OTHER


def record(run: Callable[[], object]) -> list[OperatorCall]:
    """Return the calls of operators that ``run`` makes on tensors of the meta device; views are none."""
    with _Recorder() as recorder:
        run()
    return recorder.calls


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[OperatorCall] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        outputs = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
        name = function.overloadpacket.__name__
        if name == "copy_":
            self.calls.append(OperatorCall(inputs[1:], outputs, 0))
        elif not function.is_view and any(_storage(o) not in map(_storage, inputs) for o in outputs):
            macs = _macs(name, inputs, outputs)
            self.calls.append(OperatorCall(inputs, outputs, macs, _kind(name, inputs)))
        return result


def _kind(name: str, inputs: list[Tensor]) -> Kind:
    if name in _PRODUCTS:
        return Kind.PRODUCT
    if name != "convolution":
        return Kind.OTHER
    image, weight = inputs[:2]
    if weight.shape[1] == 1 < image.shape[1]:
        return Kind.DEPTHWISE
    return Kind.POINTWISE if weight[0, 0].numel() == 1 else Kind.CONVOLUTION


def _macs(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    if name == "convolution":
        return outputs[0].numel() * inputs[1][0].numel()
    if name in _PRODUCTS:
        return outputs[0].numel() * inputs[-2].shape[-1]
    return 0


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _operator(
    made: set[int],
    read: Iterable[Tensor],
    written: Iterable[Tensor],
    macs: int = 0,
    kind: Kind = Kind.OTHER,
) -> Operator:
    """Return an operator; ``made`` are the storages that operators made before it."""
    inputs, outputs = ({_storage(t): t for t in tensors} for tensors in (read, written))
    traffic = [Traffic(t.numel() * t.itemsize, storage in made) for storage, t in inputs.items()]
    traffic += [Traffic(t.numel() * t.itemsize, True) for t in outputs.values()]
    return Operator(tuple(traffic), macs, kind)


def eager_operators(calls: list[OperatorCall]) -> list[Operator]:
    """Return the operators as PyTorch runs them, one by one."""
    made: set[int] = set()
    operators = []
    for call in calls:
        operators.append(_operator(made, *call))
        made |= set(map(_storage, call.outputs))
    return operators


def compiled_operators(calls: list[OperatorCall]) -> list[Operator]:
    """Return the operators as a compiler fuses them at best.

    Convolutions and matrix products run by themselves; all else is fused with what it is connected to, unless
    a product lies between.
    """
    every = {_storage(t) for call in calls for t in call.outputs}
    readers: dict[int, set[int]] = {}
    for i, call in enumerate(calls):
        for t in call.inputs:
            readers.setdefault(_storage(t), set()).add(i)
    operators = [_operator(every, *call) for call in calls if call.macs]
    for members in _fused(calls):
        made = {_storage(t): t for i in members for t in calls[i].outputs}
        read = [t for i in members for t in calls[i].inputs if _storage(t) not in made]
        written = [t for s, t in made.items() if s not in readers or readers[s] - members]
        operators.append(_operator(every, read, written))
    return operators


def _fused(calls: list[OperatorCall]) -> list[set[int]]:
    """Return the sets of calls that are fused: those without products, connected at the same depth."""
    producer: dict[int, int] = {}  # the call that made a storage; products are not in it
    depth: dict[int, int] = {}  # products in front of a storage
    parent: list[int] = []

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i, (inputs, outputs, macs, _) in enumerate(calls):
        storages = list(map(_storage, inputs))
        level = max((depth[s] + (s not in producer) for s in storages if s in depth), default=0)
        parent.append(i)
        for s in storages:
            if not macs and s in producer and depth[s] == level:
                parent[root(producer[s])] = root(i)
        for t in outputs:
            s = _storage(t)
            depth[s] = level
            if macs:
                producer.pop(s, None)
            else:
                producer[s] = i
    members: dict[int, set[int]] = {}
    for i, call in enumerate(calls):
        if not call.macs:
            members.setdefault(root(i), set()).add(i)
    return list(members.values())
