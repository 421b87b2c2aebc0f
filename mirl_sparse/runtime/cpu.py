"""Run a network on the C++ kernels, in buffers planned per input size: the engine of the CPU backend."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
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
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.arena import allocate_arena
from mirl_sparse.runtime.plan import InputSize, MemoryPlan, level_of, plan_memory
from mirl_sparse.runtime.program import Kernels, Program, Slice, Step

_KERNELS = Kernels(
    PackedConv,
    PackedPointwise,
    PackedPrompt,
    lambda mdta, gdfn: PackedBlock(PackedMDTA(*mdta), PackedGDFN(*gdfn)),
)
_MAX_PLANS = 2  # input sizes whose buffers are cached
_MAX_CACHED_BYTES = 1 << 30  # of all cached buffers, when an image of a new size comes

_Call = Callable[[Tensor, Tensor], None]  # of the input image and the tensor for the result


class StepProfile(NamedTuple):
    """Tell what one step did, and how long it took.

    Attributes:
        name: The step's name, that of its layer or block.
        op: The name of its kernel.
        macs: Multiply-adds by surviving weights.
        bytes: Bytes that the fused op must move at least.
        seconds: Time of the step.
    """

    name: str
    op: str
    macs: int
    bytes: int
    seconds: float


class _BoundPlan:
    """Hold a memory plan with its memory, and one call for each step of the program."""

    def __init__(self, steps: list[Step], plan: MemoryPlan) -> None:
        self.bytes, self._plan = plan.bytes, plan
        try:
            self._arena = allocate_arena(plan.bytes)
        except OSError:
            size = f"{plan.size.height}x{plan.size.width}"
            raise MemoryError(f"the buffers for {size} take {plan.bytes / 1e9:.1f} GB") from None
        self.calls = [self._bind(i, step) for i, step in enumerate(steps)]

    def _view(self, part: Slice) -> Tensor:
        """Return the channels of a buffer as a tensor (B, C, H, W); in memory it is (B, H, C, padded W)."""
        batch, height, width = self._plan.size.at(part.buffer.level)
        start, floats = self._plan.buffers[part.buffer], self._plan.size.floats(part.buffer)
        rows = self._arena[start:][:floats].view(batch, height, -1, cpu.padded(width))
        return rows.permute(0, 2, 1, 3)[:, part.first : part.last, :, :width]

    def _scratch(self, i: int) -> Tensor | None:
        if i not in self._plan.scratch:
            return None
        start, floats = self._plan.scratch[i]
        return self._arena[start:][:floats]

    def _bind(self, i: int, step: Step) -> _Call:
        """Return the i-th step's call. Only the image and the result are bound later, when it is called."""
        op = step.op
        if step.y is None:
            assert isinstance(op, PackedConv)
            assert step.x
            features = self._view(step.x)
            return lambda image, result: op.bind(features, result, residual=image)()
        y = self._view(step.y)
        if step.x is None:
            return lambda image, _: op.bind(image, y)()
        call = op.bind(self._view(step.x), y, self._scratch(i))
        return lambda *_: call()


class CpuEngine:
    """Run a PromptIR that is packed for the C++ kernels.

    Several threads may call it: each gets buffers of its own. Buffers are cached for the last two input
    sizes.

    Args:
        network: The network; its weights are packed at once; later changes of them do not count.
        precision: "float32", or "bfloat16" to round what is multiplied where that is faster.

    Attributes:
        multiple: Number that the sides of images are multiples of.

    Raises:
        BackendError: If the weights are not on the CPU, or the kernels were not built.
    """

    def __init__(self, network: PromptIR, precision: str = "float32") -> None:
        if (device := network.output.weight.device).type != "cpu":
            raise BackendError(
                f'weights are on {device}; expected the CPU: move them, or use backend="reference"'
            )
        self.multiple = network.config.multiple
        self._plans: OrderedDict[InputSize, _BoundPlan] = OrderedDict()
        self._lock = threading.Lock()  # of the plans
        with torch.no_grad():
            self._steps = Program(network, _KERNELS).steps
            if precision == "bfloat16":
                for step in self._steps:
                    step.op.to_bfloat16()

    def __call__(self, image: Tensor) -> Tensor:
        """Restore an image.

        Args:
            image: (B, 3, H, W) float32 on the CPU, H and W as `multiple` says.

        Returns:
            A new tensor of the same shape.

        Raises:
            ValueError: If H or W is not such a multiple.
            BackendError: If the image is of another dtype, or on another device.
            MemoryError: If there is not enough memory for the buffers.
        """
        return self._run(image, lambda call, x, y: call(x, y))

    def has_plan(self, image: Tensor) -> bool:
        """Return whether the buffers for an image of this shape are cached."""
        return _size(image) in self._plans

    def required_bytes(self, batch: int, height: int, width: int) -> int:
        """Return how much memory, in bytes, the buffers for (batch, 3, height, width) take."""
        return plan_memory(self._steps, InputSize(batch, height, width)).bytes

    @property
    def cached_bytes(self) -> int:
        """Return the size of all cached buffers in bytes."""
        with self._lock:
            return sum(plan.bytes for plan in self._plans.values())

    def release(self) -> None:
        """Free all cached buffers."""
        with self._lock:
            self._plans.clear()

    def calls(self, batch: int, height: int, width: int) -> list[tuple[cpu.Packed, tuple[int, int, int]]]:
        """Return each step's op and the (B, H, W) of its input, for an image (batch, 3, height, width)."""
        size = InputSize(batch, height, width)
        return [(step.op, size.at(level_of(step))) for step in self._steps]

    def profile(self, image: Tensor) -> list[StepProfile]:
        """Restore an image (B, 3, H, W) once; return the time and the work of each step."""
        seconds = []

        def timed(call: _Call, x: Tensor, y: Tensor) -> None:
            begin = time.perf_counter()
            call(x, y)
            seconds.append(time.perf_counter() - begin)

        self._run(image, timed)
        batch, _, height, width = image.shape
        return [
            StepProfile(step.name, type(op).__name__.removeprefix("Packed"), *op.work(*shape), taken)
            for step, (op, shape), taken in zip(
                self._steps, self.calls(batch, height, width), seconds, strict=True
            )
        ]

    @torch.no_grad()
    def _run(self, image: Tensor, run: Callable[[_Call, Tensor, Tensor], None]) -> Tensor:
        """Make each step's call through ``run(call, image, result)``; return the result."""
        size = _size(image)
        if size.height % self.multiple or size.width % self.multiple:
            raise ValueError(f"input is {size.height}x{size.width}; expected multiples of {self.multiple}")
        plan = self._take_plan(size)
        result = torch.empty_like(image)
        for call in plan.calls:
            run(call, image, result)
        self._put_back(size, plan)
        return result

    def _take_plan(self, size: InputSize) -> _BoundPlan:
        """Return a plan for the caller alone, until it is put back: from the cache, or a new one."""
        with self._lock:
            plan = self._plans.pop(size, None)
            if plan is None and sum(p.bytes for p in self._plans.values()) > _MAX_CACHED_BYTES:
                self._plans.clear()
        if plan is None:
            # Buffers made in inference mode could not be written to by a later call outside of that mode.
            with torch.inference_mode(False):
                plan = _BoundPlan(self._steps, plan_memory(self._steps, size))
        return plan

    def _put_back(self, size: InputSize, plan: _BoundPlan) -> None:
        with self._lock:
            self._plans[size] = plan
            while len(self._plans) > _MAX_PLANS:
                self._plans.popitem(last=False)


def _size(image: Tensor) -> InputSize:
    batch, _, height, width = image.shape
    return InputSize(batch, height, width)
