"""PromptIR on the C++ kernels: every layer packed once, every buffer planned once per image size."""

from __future__ import annotations

import mmap
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.block import PackedBlock
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.mdta import PackedMDTA
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.prompt import PackedPrompt
from mirl_sparse.architectures.promptir.config import MULTIPLE
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.program import Buffer, Kernels, Program, Slice, Step

_KERNELS = Kernels(
    PackedConv,
    PackedPointwise,
    PackedPrompt,
    lambda mdta, gdfn: PackedBlock(PackedMDTA(*mdta), PackedGDFN(*gdfn)),
)
_PLANS_KEPT, _BYTES_KEPT = (
    2,
    1 << 30,
)  # how many sizes' buffers are kept, and how many bytes when another size comes


class Measured(NamedTuple):
    """What a step did: ``op`` is the name of its kernel; multiply-adds by surviving weights, the bytes that the
    fused op cannot help moving, and the seconds it took."""

    name: str
    op: str
    macs: int
    bytes: int
    seconds: float


def _place(wanted: list[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Where each of the stretches (first step, last step, floats) goes in one arena, and how long that is: the
    largest first, each at the lowest place that is free while it is wanted."""
    placed: list[int] = []
    starts = [0] * len(wanted)
    for i in sorted(range(len(wanted)), key=lambda i: -wanted[i][2]):
        first, last, floats = wanted[i]
        for j in sorted(placed, key=lambda j: starts[j]):
            if wanted[j][0] <= last and first <= wanted[j][1]:
                if starts[j] - starts[i] >= floats:
                    break
                starts[i] = max(starts[i], starts[j] + wanted[j][2])
        placed.append(i)
    return starts, max(start + want[2] for start, want in zip(starts, wanted, strict=True))


class _Plan:
    """A program bound to the buffers of one input size, which share one arena: a buffer's memory is used again
    once its last reader is through. Without ``memory`` it only says how many ``bytes`` that takes."""

    def __init__(self, steps: list[Step], batch: int, height: int, width: int, memory: bool = True) -> None:
        def side(level: int) -> tuple[int, int]:
            return height >> level, width >> level

        used: dict[Buffer, list[int]] = {}  # by which steps
        scratch: dict[int, int] = {}  # floats
        for i, step in enumerate(steps):
            for part in (step.x, step.y):
                if part:
                    used.setdefault(part.buffer, []).append(i)
            level = step.x.buffer.level if step.x else 0
            if n := step.op.scratch_floats(batch, *side(level)):
                scratch[i] = n

        def floats(buffer: Buffer) -> int:
            h, w = side(buffer.level)
            return batch * h * buffer.channels * cpu.padded(w)

        def whole(n: int) -> int:
            return -(-n // 64) * 64  # 256 bytes

        wanted = [(steps[0], steps[-1], whole(floats(buffer))) for buffer, steps in used.items()]
        starts, size = _place(wanted + [(i, i, whole(n)) for i, n in scratch.items()])
        start = dict(zip([*used, *scratch], starts, strict=True))

        self.bytes = 4 * size
        self.calls: list[Callable[[Tensor, Tensor], None]] = []
        if not memory:
            return
        # Huge pages, where the system has them: fewer of them are looked up, and touched for the first time.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        try:
            mapped = mmap.mmap(-1, self.bytes, **private)
        except OSError:
            raise MemoryError(f"the buffers for {height}x{width} take {self.bytes / 1e9:.1f} GB") from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel that was built without them
                mapped.madvise(mmap.MADV_HUGEPAGE)
        arena = torch.frombuffer(mapped, dtype=torch.float32)

        def view(part: Slice) -> Tensor:
            h, w = side(part.buffer.level)
            image = arena[start[part.buffer] :][: floats(part.buffer)].view(batch, h, -1, cpu.padded(w))
            return image.permute(0, 2, 1, 3)[:, part.first : part.last, :, :w]

        def bind(i: int, step: Step) -> Callable[[Tensor, Tensor], None]:
            op = step.op
            if step.y is None:
                assert isinstance(op, PackedConv)
                assert step.x
                last = view(step.x)
                return lambda image, result: op.bind(last, result, residual=image)()
            y = view(step.y)
            if step.x is None:
                return lambda image, _: op.bind(image, y)()
            x, own = view(step.x), arena[start[i] :][: scratch[i]] if i in scratch else None
            call = op.bind(x, y, own)
            return lambda *_: call()

        self.calls = [bind(i, step) for i, step in enumerate(steps)]


class Engine:
    """A PromptIR packed for the C++ kernels. Several threads may call it: each takes buffers of its own."""

    def __init__(self, network: PromptIR) -> None:
        if (device := network.output.weight.device).type != "cpu":
            raise BackendError(
                f'weights are on {device}; expected the CPU: move them, or use backend="reference"'
            )
        self._plans: OrderedDict[tuple[int, int, int], _Plan] = OrderedDict()
        self._lock = threading.Lock()  # of the plans
        with torch.no_grad():
            self._steps = Program(network, _KERNELS).steps

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float32 on the CPU, H and W multiples of 8, to a new tensor of that shape."""
        return self._run(image, lambda call, x, y: call(x, y))

    def has_plan(self, image: Tensor) -> bool:
        """Whether the buffers for an image of that shape are there already."""
        return (len(image), *image.shape[2:]) in self._plans

    @property
    def kept(self) -> int:
        """Bytes of buffers that are kept for the next image of their sizes."""
        with self._lock:
            return sum(plan.bytes for plan in self._plans.values())

    def release(self) -> None:
        """Keep no buffers."""
        with self._lock:
            self._plans.clear()

    def calls(self, batch: int, height: int, width: int) -> list[tuple[cpu.Packed, tuple[int, int, int]]]:
        """Each step's op and the (B, H, W) that it is called on for an image of (batch, 3, height, width)."""
        levels = [step.x.buffer.level if step.x else 0 for step in self._steps]
        return [
            (step.op, (batch, height >> n, width >> n)) for step, n in zip(self._steps, levels, strict=True)
        ]

    def bytes(self, batch: int, height: int, width: int) -> int:
        """How much memory the buffers for (B, 3, H, W) take."""
        return _Plan(self._steps, batch, height, width, memory=False).bytes

    def profile(self, image: Tensor) -> list[Measured]:
        """Run once, and measure each step."""
        seconds = []

        def timed(call: Callable[[Tensor, Tensor], None], x: Tensor, y: Tensor) -> None:
            begin = time.perf_counter()
            call(x, y)
            seconds.append(time.perf_counter() - begin)

        self._run(image, timed)
        batch, _, height, width = image.shape
        return [
            Measured(step.name, type(op).__name__.removeprefix("Packed"), *op.work(*shape), taken)
            for step, (op, shape), taken in zip(
                self._steps, self.calls(batch, height, width), seconds, strict=True
            )
        ]

    @torch.no_grad()
    def _run(
        self, image: Tensor, run: Callable[[Callable[[Tensor, Tensor], None], Tensor, Tensor], None]
    ) -> Tensor:
        batch, _, height, width = image.shape
        if height % MULTIPLE or width % MULTIPLE:
            raise ValueError(f"input is {height}x{width}; expected multiples of {MULTIPLE}")
        key = batch, height, width
        with self._lock:
            plan = self._plans.pop(key, None)  # ours alone until it is put back
            if plan is None and sum(kept.bytes for kept in self._plans.values()) > _BYTES_KEPT:
                self._plans.clear()
        if plan is None:
            with torch.inference_mode(
                False
            ):  # else a later call outside of that mode might not write to them
                plan = _Plan(self._steps, *key)
        result = torch.empty_like(image)
        for call in plan.calls:
            run(call, image, result)
        with self._lock:
            self._plans[key] = plan
            while len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        return result
