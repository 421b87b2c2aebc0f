"""Run a network on the C++ runtime: the engine of the CPU backend."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mirl_kernels.core import cpu, native
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.block import PackedBlock
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.mdta import PackedMDTA
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.prompt import PackedPrompt
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.program import Kernels, Program, Step
from mirl_sparse.runtime.program_file import assemble

_KERNELS = Kernels(
    PackedConv,
    PackedPointwise,
    PackedPrompt,
    lambda mdta, gdfn: PackedBlock(PackedMDTA(*mdta), PackedGDFN(*gdfn)),
)
_QUICK = 1 << 20  # values of images that are restored at once, whatever happens
_MAX_PLANS = 2  # input sizes whose buffers are cached
_MAX_CACHED_BYTES = 1 << 30  # of all cached buffers, when an image of a new size comes


class InputSize(NamedTuple):
    """Hold the size of an input (batch, 3, height, width)."""

    batch: int
    height: int
    width: int


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


@torch.no_grad()
def packed_steps(network: PromptIR) -> list[Step]:
    """Return the steps of a network, packed for the C++ kernels."""
    return Program(network, _KERNELS).steps


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
        self._plans: OrderedDict[InputSize, native.Plan] = OrderedDict()
        self._lock = threading.Lock()  # of the plans
        self._steps = packed_steps(network)
        if precision == "bfloat16":
            for step in self._steps:
                step.op.to_bfloat16()
        words = assemble(self._steps, self.multiple)
        self._program = native.Program(words.data_ptr(), 4 * len(words), words)

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
        return self._run(image)

    def has_plan(self, image: Tensor) -> bool:
        """Return whether the buffers for an image of this shape are cached."""
        return _size(image) in self._plans

    def required_bytes(self, batch: int, height: int, width: int) -> int:
        """Return how much memory, in bytes, the buffers for (batch, 3, height, width) take."""
        return self._program.required_bytes(batch, height, width)

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
        levels = [step.x.buffer.level if step.x else 0 for step in self._steps]
        return [
            (step.op, (batch, height >> level, width >> level))
            for step, level in zip(self._steps, levels, strict=True)
        ]

    def profile(self, image: Tensor) -> list[StepProfile]:
        """Restore an image (B, 3, H, W) once; return the time and the work of each step."""
        times: list[float] = []
        begin = time.perf_counter()
        self._run(image, lambda _: times.append(time.perf_counter()))
        seconds = np.diff([begin, *times]).tolist()
        batch, _, height, width = image.shape
        return [
            StepProfile(step.name, type(op).__name__.removeprefix("Packed"), *op.work(*shape), taken)
            for step, (op, shape), taken in zip(
                self._steps, self.calls(batch, height, width), seconds, strict=True
            )
        ]

    def _run(self, image: Tensor, progress: Callable[[float], object] | None = None) -> Tensor:
        """Restore an image; ``progress`` is called after each step."""
        size = _size(image)
        if image.dtype != torch.float32 or image.device.type != "cpu":
            raise BackendError(f"input is {image.dtype} on {image.device}; expected float32 on the CPU")
        image, result = image.contiguous(), torch.empty(image.shape)
        if progress is None and image.numel() > _QUICK:
            progress = native.ignore  # Ctrl+C then stops the work
        plan = self._take_plan(size)
        plan.run(image.data_ptr(), result.data_ptr(), torch.get_num_threads(), progress)
        self._put_back(size, plan)
        return result

    def _take_plan(self, size: InputSize) -> native.Plan:
        """Return a plan for the caller alone, until it is put back: from the cache, or a new one."""
        with self._lock:
            plan = self._plans.pop(size, None)
            if plan is None and sum(p.bytes for p in self._plans.values()) > _MAX_CACHED_BYTES:
                self._plans.clear()
        return plan or native.Plan(self._program, *size)

    def _put_back(self, size: InputSize, plan: native.Plan) -> None:
        with self._lock:
            self._plans[size] = plan
            while len(self._plans) > _MAX_PLANS:
                self._plans.popitem(last=False)


def _size(image: Tensor) -> InputSize:
    batch, _, height, width = image.shape
    return InputSize(batch, height, width)
