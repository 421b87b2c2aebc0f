"""Predict what a ticket takes on GPUs, beside the dense network, without a GPU.

The sparse network's predictions come from its launches (`mirl_kernels.core.triton.model`). The dense
network's favour it:

- Every operator reads and writes its tensors once at the full bandwidth of the memory; tensors that fit in a
  quarter of the cache cost nothing.
- Products run at the peak of the tensor cores, depthwise convolutions too, which are far from that on GPUs.
- Where the network is compiled, whatever is not a convolution or matrix product is fused as far as
  dependencies allow.

From one kernel to the next either network takes the same time; PyTorch as it is takes longer where the
processor cannot launch as fast. From sm_90 on, a sparse launch may begin while the sparse one before it ends
(`model.DEPENDENT_LAUNCH`), which PyTorch's kernels do not do. Of the sparse network only hidden channels and
sums of Gram matrices are taken to stay in the cache, not its features, though what it writes there takes the
cache's time. A step is left to dense operators where these would take less time, at DERATED of every peak,
than its sparse kernels at the peaks.

What the sparse network's programs wait for memory counts where nothing hides it. The dense network is taken
to wait for nothing.

A GPU that was calibrated (`calibration`) gets the fractions of the peaks that were measured on it instead,
sparse and dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import astuple, dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mirl_kernels.core.triton import Launch, Work, count_work
from mirl_kernels.errors import BackendError
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.performance.calibration import Calibration, read_calibration
from mirl_sparse.performance.dense_operators import Operator, compiled_operators, eager_operators, record
from mirl_sparse.runtime.gpu import check_package
from mirl_sparse.runtime.program import Step
from mirl_sparse.runtime.triton_network import PRECISIONS, PackedNetwork, launches

if TYPE_CHECKING:
    from mirl_kernels.core.triton.model import GPU, Predicted

DERATED = 0.6  # of every peak, for the row that asks what remains where nothing reaches its peak
_OLDEST_TRITON = 3, 6


@dataclass(frozen=True)
class Prediction:
    """Hold the prediction for one GPU.

    Attributes:
        gpu: Name of the GPU.
        eager: Seconds of the dense network as PyTorch runs it.
        compiled: Seconds of the dense network, compiled.
        sparse: Seconds of the sparse network.
        sparse_derated: Seconds of the sparse network at DERATED of every peak.
        eager_bytes: Bytes to and from memory of the dense network as PyTorch runs it.
        sparse_bytes: Bytes to and from memory of the sparse network.
        launches: Launches of the sparse network.
        dense_steps: Steps that the sparse network leaves to dense operators, which are at DERATED of the
            peaks in any case.
        calibrated: What the GPU was calibrated with, or "" where the peaks of its data sheet count.
    """

    gpu: str
    eager: float
    compiled: float
    sparse: float
    sparse_derated: float
    eager_bytes: int
    sparse_bytes: int
    launches: int
    dense_steps: tuple[str, ...]
    calibrated: str = ""


@torch.no_grad()
def predict(
    network: PromptIR,
    shape: tuple[int, int, int],
    precision: str = "float16",
    gpus: Iterable[str] | None = None,
    progress: Callable[[str], None] = lambda gpu: None,
) -> list[Prediction]:
    """Predict what a network takes on GPUs.

    Kernels are compiled for each GPU, which takes a minute.

    Args:
        network: A ticket's network.
        shape: (batch, height, width) of the image, sides as the network takes them.
        precision: Precision of activations: "float16", "bfloat16" or "float32".
        gpus: Names of `mirl_kernels.core.triton.model.GPUS`; by default all of them.
        progress: Function that is called with the name of each GPU before its turn.

    Raises:
        BackendError: There is no Triton, or one that is older than what has been tried.
    """
    check_package()
    _check_version()
    from mirl_kernels.core.triton.model import GPUS

    workload = _Workload(network, shape, PRECISIONS[precision])
    predictions = []
    for name in gpus or GPUS:
        progress(name)
        predictions.append(_predict_for(workload, name, GPUS[name]))
    return predictions


def _check_version() -> None:
    import triton

    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST_TRITON:
        raise BackendError(
            f"predictions read what Triton 3.6 to 3.9 compile, this is {triton.__version__}:"
            " pip install -U triton"
        )


class _Workload:
    """Hold the work of a network on one image: that of the dense network, and of each step."""

    def __init__(self, network: PromptIR, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        image = torch.empty(shape[0], 3, *shape[1:], device="meta")
        dense_network, dense_image = deepcopy(network).to("meta", dtype), image.to(dtype)
        calls = record(lambda: dense_network(dense_image))
        self.shape = shape
        self.eager, self.compiled = eager_operators(calls), compiled_operators(calls)
        self.packed = PackedNetwork(network, dtype)
        self.dense_steps: dict[str, list[Operator]] = {}
        self.packed.run(image, image, self._record_step)

    def _record_step(self, step: Step, *args: Tensor, **more: Tensor) -> None:
        op = self.packed.dense[step.name].to("meta")
        self.dense_steps[step.name] = eager_operators(record(lambda: op(*args, **more)))


@dataclass(frozen=True)
class _Prices:
    """Say what a GPU takes, by its peaks or, where it was calibrated, by what was measured on it."""

    gpu: GPU
    calibration: Calibration | None

    @property
    def gap(self) -> float:
        from mirl_kernels.core.triton.model import LAUNCH

        return self.calibration.launch if self.calibration else LAUNCH

    @property
    def memory(self) -> float:
        return self.gpu.memory * (self.calibration.memory if self.calibration else 1)

    @property
    def sparse_gap(self) -> float:
        """Seconds from a sparse launch to the next; those that were calibrated are the same after any."""
        from mirl_kernels.core.triton.model import DEPENDENT_LAUNCH

        return DEPENDENT_LAUNCH if self.gpu.dependent and not self.calibration else self.gap

    def launch(self, kernel: str, predicted: Predicted) -> float:
        if self.calibration is None:
            return predicted.seconds(launch=self.sparse_gap)
        return self.calibration.seconds(kernel, astuple(predicted))

    def dense(self, operators: Iterable[Operator], fraction: float = 1.0, least: float = 0.0) -> float:
        measured = self.calibration.dense if self.calibration else {}
        return sum(o.seconds(self.gpu, self.gap, measured.get(o.kind, fraction), least) for o in operators)


def _predict_for(workload: _Workload, name: str, gpu: GPU) -> Prediction:
    from mirl_kernels.core.triton.model import EAGER_LAUNCH, moved
    from mirl_kernels.core.triton.model import predict as predict_launch
    from mirl_kernels.core.triton.offline import compile_ahead, compile_for

    prices = _Prices(gpu, calibration := read_calibration(name))
    sparse: list[Launch] = []
    parts: list[Predicted] = []
    dense: dict[str, list[Operator]] = {}
    seconds, first = 0.0, True  # whether a launch comes first, or after a dense operator
    steps = launches(workload.packed, workload.shape, gpu.workspace())
    compile_ahead(gpu.architecture, chain.from_iterable(steps.values()))
    for step, launched in steps.items():
        compiled = [compile_for(gpu.architecture, launch)[0] for launch in launched]
        predicted = [predict_launch(launch, gpu) for launch in compiled]
        takes = sum(prices.launch(x.kernel.__name__, p) for x, p in zip(compiled, predicted, strict=True))
        takes += first * (prices.gap - prices.sparse_gap)
        operators = workload.dense_steps[step]
        if prices.dense(operators, DERATED) < takes:
            dense[step] = operators
        else:
            sparse, parts, seconds = sparse + compiled, parts + predicted, seconds + takes
        first = step in dense
    dense_operators = list(chain.from_iterable(dense.values()))
    dense_seconds = prices.dense(dense_operators, DERATED)
    works = [count_work(launch) for launch in sparse]
    evicted = evicted_bytes(zip(sparse, works, strict=True), gpu.cached)
    return Prediction(
        gpu=name,
        eager=prices.dense(workload.eager, least=EAGER_LAUNCH),
        compiled=prices.dense(workload.compiled),
        sparse=seconds + evicted / prices.memory + dense_seconds,
        sparse_derated=sum(p.seconds(DERATED, prices.sparse_gap) for p in parts)
        + evicted / gpu.memory / DERATED
        + dense_seconds,
        eager_bytes=sum(o.moved(gpu.cached) for o in workload.eager),
        sparse_bytes=sum(moved(w, gpu.cached) for w in works)
        + evicted
        + sum(o.moved(gpu.cached) for o in dense_operators),
        launches=len(sparse) + len(dense_operators),
        dense_steps=tuple(dense),
        calibrated=calibration.measured if calibration else "",
    )


def evicted_bytes(launched: Iterable[tuple[Launch, Work]], cached: int) -> int:
    """Return the bytes of hidden channels that the cache keeps at first and writes to memory after all.

    It does so when hidden channels of another level take their place.

    Args:
        launched: Launches in their order, and their work.
        cached: Bytes of hidden channels that the cache keeps at most.
    """
    in_cache = (
        (launch.arguments["width"], w.buffer)
        for launch, w in launched
        if w.hidden and w.buffer <= cached and "width" in launch.arguments
    )
    return sum(max(size for _, size in level) for _, level in groupby(in_cache, key=itemgetter(0)))
