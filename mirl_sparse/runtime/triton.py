"""PromptIR on the Triton kernels: a GPU's, or Triton's interpreter where TRITON_INTERPRET is set, which tests alone want."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mirl_kernels.core.triton import MOST, Launch, Tile, Tuner, Workspace, recording
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.conv.reference import conv
from mirl_kernels.ops.gdfn.reference import gdfn
from mirl_kernels.ops.mdta.reference import mdta
from mirl_kernels.ops.pointwise.reference import pointwise
from mirl_kernels.ops.prompt.reference import prompt
from mirl_sparse.architectures.promptir.config import MULTIPLE
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.program import Buffer, Kernels, Program, Slice, Step

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_SIZES_KEPT = 4  # whose launches are kept as a CUDA graph
_TIMED = 8  # how often a call is repeated to be timed
_MARGIN = 0.95  # of its time at most for what is chosen instead of a sparse step
_HIDDEN = 6  # the hidden channels of a step, in widths of its input: 2 * 2.66


def check_package() -> None:
    """Raise BackendError unless Triton is installed."""
    try:
        import triton  # noqa: F401
    except ImportError:
        raise BackendError("the kernels for GPUs need the package triton: pip install triton") from None


def check_gpu() -> None:
    """Raise BackendError unless there is a GPU that PyTorch can use, and Triton is installed."""
    if not torch.cuda.is_available() and not _interprets():
        raise BackendError('backend "triton" runs on GPUs, and PyTorch sees none here; use backend "cpu"')
    if (
        torch.cuda.is_available()
        and not torch.version.hip
        and (found := torch.cuda.get_device_capability()) < (8, 0)
    ):
        raise BackendError(
            f'backend "triton" wants a GPU from sm_80 on, this is sm_{found[0]}{found[1]}; use backend "cpu"'
        )
    check_package()


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


class _Dense(nn.Module):
    """What a step does by PyTorch's dense operators: a reference on the weights of ``dtype``."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        weights: Sequence[Tensor | None],
        dtype: torch.dtype,
        **constants: int,
    ) -> None:
        super().__init__()
        self.function, self.dtype = partial(function, **constants), dtype
        for i, weight in enumerate(weights):
            self.register_buffer(str(i), None if weight is None else weight.detach().to(dtype))

    def forward(self, x: Tensor, y: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        result: Tensor = self.function(x.to(self.dtype), *self._buffers.values())
        result = result if residual is None else result + residual
        return result if y is None else y.copy_(result)


class _Block(nn.Module):
    def __init__(self, mdta: nn.Module, gdfn: nn.Module) -> None:
        super().__init__()
        self.mdta, self.gdfn = mdta, gdfn

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.gdfn(self.mdta(x), y)


def _kernels(dtype: torch.dtype) -> Kernels:
    from mirl_kernels.ops.conv.triton import TritonConv  # these import triton
    from mirl_kernels.ops.gdfn.triton import TritonGDFN
    from mirl_kernels.ops.mdta.triton import TritonMDTA
    from mirl_kernels.ops.pointwise.triton import TritonPointwise
    from mirl_kernels.ops.prompt.triton import TritonPrompt

    return Kernels(
        partial(TritonConv, dtype=dtype),
        partial(TritonPointwise, dtype=dtype),
        partial(TritonPrompt, dtype=dtype),
        lambda mdta, gdfn: _Block(
            partial(TritonMDTA, dtype=dtype)(*mdta), partial(TritonGDFN, dtype=dtype)(*gdfn)
        ),
    )


def _dense(dtype: torch.dtype) -> Kernels:
    return Kernels(
        lambda weight, shuffle=1: _Dense(conv, [weight], dtype, shuffle=shuffle),
        lambda weight: _Dense(pointwise, [weight], dtype),
        lambda *weights: _Dense(prompt, weights, dtype),
        lambda attention, feed_forward: _Block(
            _Dense(mdta, attention, dtype), _Dense(gdfn, feed_forward, dtype)
        ),
    )


class PackedNetwork:
    """A PromptIR packed for the Triton kernels, on the CPU at first, and its run. ``dense`` are the same steps' ops by PyTorch, by their
    names."""

    @torch.no_grad()
    def __init__(self, network: PromptIR, dtype: torch.dtype) -> None:
        network = deepcopy(network).cpu()
        self.steps, self._dtype = Program(network, _kernels(dtype)).steps, dtype
        self.dense: dict[str, nn.Module] = {
            step.name: step.op for step in Program(network, _dense(dtype)).steps
        }
        self._last = {
            buffer: i
            for i, s in enumerate(self.steps)
            for part in (s.x, s.y)
            if part
            for buffer in [part.buffer]
        }

    def to(self, device: torch.device) -> None:
        for step in self.steps:
            step.op.to(device)
        for op in self.dense.values():
            op.to(device)

    def __call__(self, image: Tensor, dense: Container[str] = ()) -> Tensor:
        """Restore an image, the steps named by ``dense`` with dense operators, but for those that `fits` excludes."""

        def make(step: Step, x: Tensor, *args: Tensor, **more: Tensor) -> None:
            (self.dense[step.name] if step.name in dense and fits(step, x) else step.op)(x, *args, **more)

        result = torch.empty_like(image)
        self.run(image, result, make)
        return result

    def dense_where_faster(
        self, image: Tensor, seconds: Callable[[Callable[[], Any]], float]
    ) -> frozenset[str]:
        """The steps that take less time by dense operators, as ``seconds`` says of a call, which makes the step's output."""
        found = set()

        def compare(step: Step, x: Tensor, y: Tensor, **more: Tensor) -> None:
            sparse, dense = (partial(op, x, y, **more) for op in (step.op, self.dense[step.name]))
            if not fits(step, x):
                sparse()
            elif seconds(dense) < _MARGIN * seconds(sparse):
                found.add(step.name)

        self.run(image, torch.empty_like(image), compare)
        return frozenset(found)

    def run(self, image: Tensor, result: Tensor, step_by: Callable[..., Any]) -> None:
        """``step_by(step, x, y)`` for each step in turn, with its input and the memory for its output; the last one's are the features and
        ``result``, with the image as ``residual``."""
        batch, _, height, width = image.shape
        kept: dict[Buffer, Tensor] = {}

        def view(part: Slice) -> Tensor:
            buffer = part.buffer
            if buffer not in kept:
                shape = batch, buffer.channels, height >> buffer.level, width >> buffer.level
                kept[buffer] = torch.empty(shape, dtype=self._dtype, device=image.device)
            return kept[buffer][:, part.first : part.last]

        for i, step in enumerate(self.steps):
            if step.y is None:
                assert step.x
                step_by(step, view(step.x), result, residual=image)
            else:
                step_by(step, image if step.x is None else view(step.x), view(step.y))
            for buffer in [b for b in kept if self._last[b] == i]:
                del kept[buffer]


def fits(step: Step, x: Tensor) -> bool:
    """Whether dense operators may make a step: a block takes memory for all its hidden channels then, up to three times at once, of which
    `MOST` bytes are to suffice."""
    return not isinstance(step.op, _Block) or 3 * _HIDDEN * x.numel() * x.itemsize <= MOST


def workspace(device: torch.device, tiles: Mapping[str, Tile]) -> Workspace:
    """For a GPU: hidden channels may take a quarter of the cache that its processors share (on AMD's none; before PyTorch 2.8 its
    size is not known)."""
    if device.type != "cuda":
        return Workspace(tiles=tiles)
    properties = torch.cuda.get_device_properties(device)
    cached = 0 if torch.version.hip else getattr(properties, "L2_cache_size", 0) // 4
    return Workspace(cached, properties.multi_processor_count, tiles)


@torch.no_grad()
def launches(
    packed: PackedNetwork, shape: tuple[int, int, int], workspace: Workspace | None = None
) -> dict[str, list[Launch]]:
    """What each step of a network launches for an image of ``shape`` (batch, height, width), sides multiples of 8, on a GPU that the
    workspace is for; nothing is run, and no GPU is needed."""
    image = torch.empty(shape[0], 3, *shape[1:], device="meta")
    found: dict[str, list[Launch]] = {}

    def record(step: Step, *args: Tensor, **more: Tensor) -> None:
        with recording() as made:
            step.op(*args, **more)
        found[step.name] = made

    with (workspace or Workspace()).used():
        packed.run(image, image, record)
    return found


def device() -> torch.device:
    """Where the kernels run."""
    return torch.device("cpu" if _interprets() else "cuda")


_ONE_RECORDS = threading.Lock()  # in a process, of all GPUs


@contextmanager
def _recorded(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """What is launched meanwhile is recorded, on a stream of the current device. (PyTorch's own choice is one of the device that
    recorded first.) Other threads may allocate memory meanwhile."""
    with _ONE_RECORDS, torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
        yield


def seconds(call: Callable[[], Any], replayed: bool = True) -> float:
    """What the current GPU takes for what a call launches: the least of some turns, launches ``replayed`` as a graph, which costs the host
    nothing, or made by the host; infinite where its memory does not suffice. In the interpreter, what the call takes."""
    if _interprets():
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def calls() -> None:
        for _ in range(_TIMED):
            call()

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    found, run = [], calls
    try:
        call()  # compiles
        if replayed:
            graph = torch.cuda.CUDAGraph()
            with _recorded(graph):
                calls()
            run = graph.replay
        for _ in range(4):  # the first of a graph prepares it
            start.record()
            run()
            end.record()
            end.synchronize()
            found.append(float(start.elapsed_time(end)) / 1e3 / _TIMED)
    except torch.cuda.OutOfMemoryError:
        return math.inf
    return min(found)


@dataclass(frozen=True)
class Tuning:
    """What was found to be fastest on one GPU: the tile of each kernel, by how it is compiled, and the steps that dense operators do."""

    tiles: Mapping[str, Tile]
    dense: frozenset[str]


class TritonEngine:
    """A PromptIR packed for the Triton kernels, with activations of ``precision`` between float32 images. Without a ``tuning``, and where
    precision is not float32, each step is timed on a GPU against PyTorch's dense operators with the first image, and the faster is
    taken from then on, so that another process may round differently; the launches of an image size are recorded as a CUDA graph
    when it is seen for the second time. Several threads may call it, on streams of their own: each stream has buffers of its own."""

    def __init__(self, network: PromptIR, precision: str = "float16", tuning: Tuning | None = None) -> None:
        self.device = network.output.weight.device
        check_gpu()
        if self.device.type != "cuda" and not _interprets():
            raise BackendError(
                f'backend "triton" runs on GPUs, the weights are on {self.device}: move the module to one (.to("cuda"))'
            )
        self._dtype, self._width = PRECISIONS[precision], network.config.dim
        self._program = PackedNetwork(network, self._dtype)
        self._seen: OrderedDict[tuple[tuple[int, ...], int], _Seen] = OrderedDict()  # by shape and stream
        self._tiles: Mapping[str, Tile] = tuning.tiles if tuning else {}
        self._dense: frozenset[str] | None = None
        if tuning:
            self._choose(tuning.dense)
        self._program.to(self.device)
        self._lock = threading.Lock()

    def bytes(self, batch: int, height: int, width: int) -> int:
        """About how much memory an image of (batch, 3, height, width) takes: features, each level's widest hidden channels, and what
        a dense step makes of them."""
        features = batch * height * width * self._width * self._dtype.itemsize
        hidden = [min(2 * _HIDDEN * features >> level, MOST) for level in range(4)]
        return 4 * features + sum(hidden) + min(3 * hidden[0], MOST)

    @property
    def kept(self) -> int:
        """About how many bytes are kept for the next images of the sizes seen."""
        return sum(self.bytes(batch, height, width) for (batch, _, height, width), _ in list(self._seen))

    def release(self) -> None:
        """Keep nothing of the images seen."""
        with self._lock:
            self._seen.clear()

    def has_plan(self, image: Tensor) -> bool:
        """Whether an image of that shape takes no more memory, or none may be looked for, since a graph is being recorded."""
        if image.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return image.device.type == "cuda"
        seen = self._seen.get(self._key(image))
        return seen is not None and seen.graph is not None

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float32, H and W multiples of 8, to a new tensor of that shape."""
        if image.device != self.device or image.dtype != torch.float32:
            raise ValueError(f"image is {image.dtype} on {image.device}; expected float32 on {self.device}")
        if image.shape[2] % MULTIPLE or image.shape[3] % MULTIPLE:
            raise ValueError(f"input is {image.shape[2]}x{image.shape[3]}; expected multiples of {MULTIPLE}")
        if self.device.type != "cuda":
            with self._workspace().used():
                return self._program(image.contiguous(), self._dense or ())
        # Tensors made in inference mode could not be written to outside of it.
        with self._lock, torch.cuda.device(self.device), torch.inference_mode(False), torch.no_grad():
            return self._replayed(image.contiguous())

    def _key(self, image: Tensor) -> tuple[tuple[int, ...], int]:
        return tuple(image.shape), torch.cuda.current_stream(self.device).cuda_stream

    def _workspace(self) -> Workspace:
        return workspace(self.device, self._tiles)

    def _choose(self, dense: frozenset[str]) -> frozenset[str]:
        """These steps by dense operators, whose memory alone is kept."""
        self._dense = dense
        self._program.dense = {n: op for n, op in self._program.dense.items() if n in dense}
        return dense

    def _dense_where_faster(self, image: Tensor) -> frozenset[str]:
        if self._dtype == torch.float32:  # where PyTorch's convolutions are of fewer digits (TF32)
            return frozenset()
        return self._program.dense_where_faster(image, seconds)

    @torch.no_grad()
    def tune(self, image: Tensor, budget: float) -> Tuning:
        """Find what is fastest for images such as this one, (B, 3, H, W): of each kernel the tile, as long as ``budget`` seconds last, then
        the steps that dense operators do. To be asked of an engine that has restored nothing yet; it remains untuned."""
        tuner = Tuner(seconds, time.monotonic() + budget)
        with nullcontext() if self.device.type != "cuda" else torch.cuda.device(self.device):
            with self._workspace().used(), tuner.at_work():
                self._program(image.contiguous())
            with workspace(self.device, tuner.fastest).used():
                return Tuning(tuner.fastest, self._dense_where_faster(image.contiguous()))

    def _replayed(self, image: Tensor) -> Tensor:
        if (
            torch.cuda.is_current_stream_capturing()
        ):  # by the caller, into a graph of whose memory nothing is kept
            with self._workspace().used():
                return self._program(image, self._dense or ())
        key = self._key(image)
        seen = self._seen.pop(key, None)
        self._seen[key] = now = seen or _Seen(self._workspace())
        while len(self._seen) > _SIZES_KEPT:
            self._seen.popitem(last=False)
        with now.workspace.used():
            dense = self._choose(self._dense_where_faster(image)) if self._dense is None else self._dense
            if seen is None:  # compiles what is not compiled yet; one image alone is not worth a graph
                return self._program(image, dense)
            if now.graph is None and now.room:
                now.x, graph = image.clone(), torch.cuda.CUDAGraph()
                try:
                    with _recorded(graph):
                        now.y = self._program(now.x, dense)
                    now.graph = graph
                except torch.cuda.OutOfMemoryError:
                    now.x, now.room = None, False
            if now.graph is None:
                return self._program(image, dense)
        assert now.x is not None and now.y is not None
        now.x.copy_(image)
        now.graph.replay()
        return now.y.clone()


@dataclass
class _Seen:
    """What is kept for an image size and a stream, the launches too once it was seen twice, with their input and result."""

    workspace: Workspace
    room: bool = True  # for a graph, whose memory is its own
    graph: torch.cuda.CUDAGraph | None = None
    x: Tensor | None = None
    y: Tensor | None = None
