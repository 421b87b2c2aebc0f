"""Pack a PromptIR for the Triton kernels, and the same steps for PyTorch's dense operators."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mirl_kernels.core.triton import MAX_HIDDEN_BYTES, Launch, Tile, Workspace, recording
from mirl_kernels.ops.conv.reference import conv
from mirl_kernels.ops.gdfn.reference import gdfn
from mirl_kernels.ops.mdta.reference import mdta
from mirl_kernels.ops.pointwise.reference import pointwise
from mirl_kernels.ops.prompt.reference import prompt
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.choices import Precision
from mirl_sparse.runtime.program import Buffer, Kernels, Program, Slice, Step

PRECISIONS = {
    Precision.FLOAT16.value: torch.float16,
    Precision.BFLOAT16.value: torch.bfloat16,
    Precision.FLOAT32.value: torch.float32,
}
HIDDEN_RATIO = 6  # hidden channels of a block per channel of its input, rounded up: 2 * 2.66
_DEPENDENT = 9  # the first compute capability whose launches may begin while the ones before end
_MARGIN = 0.95  # a dense step replaces a sparse one if it takes at most this share of its time


class _DenseOp(nn.Module):
    """Compute a step by PyTorch's dense operators: a reference function with weights of ``dtype``."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        weights: Sequence[Tensor | None],
        dtype: torch.dtype,
        **constants: Any,
    ) -> None:
        super().__init__()
        self.function, self.dtype = partial(function, **constants), dtype
        for i, weight in enumerate(weights):
            self.register_buffer(str(i), None if weight is None else weight.detach().to(dtype))

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        workspace: Workspace | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        result: Tensor = self.function(x.to(self.dtype), *self._buffers.values())
        result = result if residual is None else result + residual
        return result if y is None else y.copy_(result)


class BlockOp(nn.Module):
    """Run the MDTA and the GDFN of a block.

    Args:
        mdta: An op of the Triton kernels, or its dense operators.
        gdfn: The same.
    """

    def __init__(self, mdta: nn.Module, gdfn: nn.Module) -> None:
        super().__init__()
        self.mdta, self.gdfn = mdta, gdfn

    def forward(self, x: Tensor, y: Tensor | None = None, workspace: Workspace | None = None) -> Tensor:
        """Return the block's result for x, (B, C, H, W), written to y if that is given."""
        result: Tensor = self.gdfn(self.mdta(x, workspace=workspace), y, workspace)
        return result


def _sparse_kernels(dtype: torch.dtype) -> Kernels:
    from mirl_kernels.ops.conv.triton import TritonConv  # these import triton
    from mirl_kernels.ops.gdfn.triton import TritonGDFN
    from mirl_kernels.ops.mdta.triton import TritonMDTA
    from mirl_kernels.ops.pointwise.triton import TritonPointwise
    from mirl_kernels.ops.prompt.triton import TritonPrompt

    return Kernels(
        partial(TritonConv, dtype=dtype),
        partial(TritonPointwise, dtype=dtype),
        partial(TritonPrompt, dtype=dtype),
        lambda mdta, gdfn: BlockOp(
            partial(TritonMDTA, dtype=dtype)(*mdta), partial(TritonGDFN, dtype=dtype)(*gdfn)
        ),
    )


def _dense_kernels(dtype: torch.dtype) -> Kernels:
    return Kernels(
        lambda weight, **how: _DenseOp(conv, [weight], dtype, **how),
        lambda weight: _DenseOp(pointwise, [weight], dtype),
        lambda *weights: _DenseOp(prompt, weights, dtype),
        lambda attention, feed_forward: BlockOp(
            _DenseOp(mdta, attention, dtype), _DenseOp(gdfn, feed_forward, dtype)
        ),
    )


@torch.no_grad()
def dense_ops(network: PromptIR, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Return the steps of a network by PyTorch's dense operators, on the CPU, by the name of the step."""
    steps = Program(deepcopy(network).cpu(), _dense_kernels(dtype)).steps
    return {step.name: step.op for step in steps}


class PackedNetwork:
    """Run a PromptIR step by step, each packed for the Triton kernels and for dense operators.

    Everything is packed on the CPU; `to` moves it.

    Attributes:
        dtype: The type of activations and weights.
        steps: The program's steps, whose ops are sparse.
        dense: The same ops by PyTorch's dense operators, by the name of the step.
    """

    @torch.no_grad()
    def __init__(self, network: PromptIR, dtype: torch.dtype) -> None:
        network = deepcopy(network).cpu()
        self.dtype = dtype
        self.steps = Program(network, _sparse_kernels(dtype)).steps
        self.dense = dense_ops(network, dtype)
        self._last_use: dict[Buffer, int] = {}
        for i, step in enumerate(self.steps):
            for part in (step.x, step.y):
                if part:
                    self._last_use[part.buffer] = i

    def to(self, device: torch.device) -> None:
        """Move all weights to a device."""
        for step in self.steps:
            step.op.to(device)
        for op in self.dense.values():
            op.to(device)

    def __call__(
        self,
        image: Tensor,
        workspace: Workspace,
        dense: Container[str] = (),
        overflowing: list[str] | None = None,
    ) -> Tensor:
        """Restore an image.

        Args:
            image: (B, 3, H, W) float32, H and W multiples of the network's ``config.multiple``.
            workspace: What the steps share.
            dense: The names of the steps that dense operators do, unless `dense_fits` excludes them.
            overflowing: Gets the names of the steps whose result reaches the largest number of its type, or
                is not a number. Without it nothing is checked: a check waits for the GPU.

        Returns:
            A new tensor of the same shape.
        """

        def make(step: Step, x: Tensor, y: Tensor, **more: Tensor) -> None:
            use_dense = step.name in dense and dense_fits(step, x)
            op = self.dense[step.name] if use_dense else step.op
            op(x, y, workspace=workspace, **more)
            if overflowing is not None and not y.abs().amax() < torch.finfo(y.dtype).max:
                overflowing.append(step.name)

        result = torch.empty_like(image)
        self.run(image, result, make)
        return result

    def dense_where_faster(
        self, image: Tensor, workspace: Workspace, seconds: Callable[[Callable[[], Any]], float]
    ) -> frozenset[str]:
        """Time each step sparse and dense; return the names of those that dense operators do faster.

        Args:
            image: (B, 3, H, W) float32, H and W multiples of the network's ``config.multiple``.
            workspace: What the steps share.
            seconds: Function that returns the time of a call. It must make the call at least once, for the
                step's output.
        """
        faster = set()

        def compare(step: Step, x: Tensor, y: Tensor, **more: Tensor) -> None:
            ops = step.op, self.dense[step.name]
            sparse, dense = (partial(op, x, y, workspace, **more) for op in ops)
            if not dense_fits(step, x):
                sparse()
                return
            dense_seconds, is_right = seconds(dense), bool(y.isfinite().all())
            if dense_seconds < _MARGIN * seconds(sparse) and is_right:  # last sparse: y feeds the next step
                faster.add(step.name)

        self.run(image, torch.empty_like(image), compare)
        return frozenset(faster)

    def run(self, image: Tensor, result: Tensor, step_by: Callable[..., Any]) -> None:
        """Allocate the buffers for an image, and call ``step_by(step, x, y)`` for each step in turn.

        Args:
            image: (B, 3, H, W), the input of the first step.
            result: (B, 3, H, W), the output of the last step, which also gets ``residual=image``.
            step_by: Computes y, the step's output, from x, its input.
        """
        batch, _, height, width = image.shape
        live: dict[Buffer, Tensor] = {}

        def view(part: Slice) -> Tensor:
            buffer = part.buffer
            if buffer not in live:
                shape = batch, buffer.channels, height >> buffer.level, width >> buffer.level
                live[buffer] = torch.empty(shape, dtype=self.dtype, device=image.device)
            return live[buffer][:, part.first : part.last]

        for i, step in enumerate(self.steps):
            if step.y is None:
                assert step.x
                step_by(step, view(step.x), result, residual=image)
            else:
                step_by(step, image if step.x is None else view(step.x), view(step.y))
            for buffer in [b for b in live if self._last_use[b] == i]:
                del live[buffer]


def dense_fits(step: Step, x: Tensor) -> bool:
    """Return whether dense operators have enough memory for a step with input x.

    For a block they hold all hidden channels, up to three times at once. These may take `MAX_HIDDEN_BYTES`
    bytes.
    """
    return not isinstance(step.op, BlockOp) or 3 * HIDDEN_RATIO * x.numel() * x.itemsize <= MAX_HIDDEN_BYTES


def workspace(device: torch.device, tiles: Mapping[str, Tile]) -> Workspace:
    """Return a new workspace for a device, with the tiles that were tuned for it.

    On a GPU of NVIDIA, hidden channels may take a quarter of the cache that its processors share. On a GPU of
    AMD they may take nothing of it, nor before PyTorch 2.8, which does not tell the size of the cache.
    """
    if device.type != "cuda":
        return Workspace(tiles=tiles)
    properties = torch.cuda.get_device_properties(device)
    cached = 0 if torch.version.hip else getattr(properties, "L2_cache_size", 0) // 4
    dependent = not torch.version.hip and properties.major >= _DEPENDENT
    return Workspace(cached, properties.multi_processor_count, tiles, dependent)


@torch.no_grad()
def launches(
    packed: PackedNetwork, shape: tuple[int, int, int], workspace: Workspace | None = None
) -> dict[str, list[Launch]]:
    """Return what each step of a network launches, by the name of the step.

    Nothing runs, so no GPU is needed.

    Args:
        packed: The network.
        shape: (batch, height, width) of the image, whose sides the network takes.
        workspace: Describes the GPU; by default `Workspace()`.
    """
    image, workspace = torch.empty(shape[0], 3, *shape[1:], device="meta"), workspace or Workspace()
    by_step: dict[str, list[Launch]] = {}

    def record(step: Step, *args: Tensor, **more: Tensor) -> None:
        with recording() as recorded:
            step.op(*args, workspace=workspace, **more)
        by_step[step.name] = recorded

    packed.run(image, image, record)
    return by_step
