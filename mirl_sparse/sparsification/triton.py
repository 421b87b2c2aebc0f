"""Define a GPU as a target: layers and blocks on Triton kernels, timed against PyTorch's dense operators."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mirl_kernels.core.triton import Workspace
from mirl_kernels.errors import BackendError
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.gpu import check_gpu, device, seconds
from mirl_sparse.runtime.triton_network import PRECISIONS, BlockOp, workspace
from mirl_sparse.sparsification.blocks import RestormerWeights, restormer_kind
from mirl_sparse.sparsification.forward import remove_sparse_forms
from mirl_sparse.sparsification.layers import split_padding
from mirl_sparse.sparsification.target import (
    BlockKind,
    CallShape,
    LayerForm,
    LayerForms,
    Refusal,
    is_ordinary,
)

_TOLERANCES = {
    "float16": 2e-2,
    "bfloat16": 1e-1,
    "float32": 2e-3,
}  # PyTorch's float32 convolutions are in TF32
_MAX_SIZES = 16  # sizes of features: those of four images at four levels


class Workspaces:
    """Keep what the ops of one network need again at the next features of a size, for each stream.

    The ops of a network run one after the other, so they share it. A copy or a pickle starts empty.
    """

    def __init__(self) -> None:
        self._by_size: OrderedDict[Any, Workspace] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_by_size": OrderedDict()}

    @contextmanager
    def used(self, x: Tensor) -> Iterator[Workspace]:
        """Yield the workspace for an op that is called on features of x's size; nobody else has it meanwhile.

        Where a CUDA graph is being recorded, it is a new one, which belongs to the graph alone.

        Args:
            x: The features (B, C, H, W).
        """
        if x.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            yield workspace(x.device, {})
            return
        key = len(x), x.shape[2:], x.device, torch.cuda.current_stream().cuda_stream
        current = self._by_size.pop(key, None) or workspace(x.device, {})
        yield current
        self._by_size[key] = current
        while len(self._by_size) > _MAX_SIZES:
            self._by_size.popitem(last=False)


class TritonOp(nn.Module):
    """Run an op of the Triton kernels with the workspaces that it shares with others.

    Args:
        op: The op, from (B, C, H, W) to (B, O, H', W').
        workspaces: The workspaces of its network.
    """

    def __init__(self, op: nn.Module, workspaces: Workspaces) -> None:
        super().__init__()
        self.op, self.workspaces = op, workspaces

    def run(self, x: Tensor) -> Tensor:
        """Run the op on contiguous features (B, C, H, W)."""
        on_gpu = torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
        with on_gpu, self.workspaces.used(x) as workspace:
            y: Tensor = self.op(x, workspace=workspace)
        return y


class ImageOp(TritonOp):
    """Run an op on images (B, C, H, W) or (C, H, W) of any strides."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the op's result, with a batch where x has one."""
        y = self.run((x if x.ndim == 4 else x[None]).contiguous())
        return y if x.ndim == 4 else y[0]


class TokenOp(TritonOp):
    """Run a 1x1 convolution as a linear layer: tokens become pixels, and back."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., O) for tokens x (..., C)."""
        planes = x.reshape(-1, x.shape[-1]).T.contiguous()
        y = self.run(planes[None, :, None])
        return y[0, :, 0].T.contiguous().view(*x.shape[:-1], y.shape[1])


class TritonTarget:
    """Run networks on the GPU; see `SparsificationTarget` for the attributes.

    Layers and blocks are swapped where they are measured to be faster than PyTorch's dense operators. Where
    Triton's interpreter is on, the CPU takes the GPU's place.

    Args:
        precision: Type of the activations: "float16", "bfloat16" or "float32".

    Raises:
        UserError: There is no such precision.
        BackendError: There is no GPU that the kernels run on, or no Triton.
    """

    backend = "triton"
    launch_errors: tuple[type[Exception], ...] = (BackendError,)

    def __init__(self, precision: str = "float16") -> None:
        if precision not in PRECISIONS:
            raise UserError(f'precision is "{precision}"; expected one of {", ".join(PRECISIONS)}')
        check_gpu()
        self.precision = precision
        self.device, self.tolerance = device(), _TOLERANCES[precision]
        self.doubt = f", or want more digits than {precision} has"
        self.layers: LayerForms = {nn.Conv2d: self._conv, nn.Linear: self._linear}
        self.blocks: Sequence[BlockKind] = (restormer_kind(self._block),)
        self._dtype, self._workspaces = PRECISIONS[precision], Workspaces()

    def _conv(self, m: nn.Conv2d) -> LayerForm | Refusal:
        from mirl_kernels.ops.conv.triton import TritonConv
        from mirl_kernels.ops.pointwise.triton import TritonPointwise

        if m.groups == m.in_channels > 1:
            return Refusal("a depthwise convolution has no sparse form on GPUs")
        pad, padding = split_padding(m)
        packed: nn.Module
        if m.kernel_size == m.stride == (1, 1) and m.groups == 1 and not any(padding):
            packed, name = TritonPointwise(m.weight, m.bias, self._dtype), "sparse 1x1"
        else:
            stride, dilation = (m.stride[0], m.stride[1]), (m.dilation[0], m.dilation[1])
            packed = TritonConv(m.weight, m.bias, stride, padding, dilation, m.groups, dtype=self._dtype)
            name = "sparse convolution"
        op = ImageOp(packed, self._workspaces)
        return LayerForm(nn.Sequential(pad, op) if pad else op, (op,), name)

    def _linear(self, m: nn.Linear) -> LayerForm:
        from mirl_kernels.ops.pointwise.triton import TritonPointwise

        packed = TritonPointwise(m.weight[:, :, None, None], m.bias, self._dtype)
        op = TokenOp(packed, self._workspaces)
        return LayerForm(op, (op,), "sparse linear")

    def _block(self, weights: RestormerWeights) -> nn.Module:
        from mirl_kernels.ops.gdfn.triton import TritonGDFN
        from mirl_kernels.ops.mdta.triton import TritonMDTA

        mdta = TritonMDTA(*weights.attention, dtype=self._dtype)
        gdfn = TritonGDFN(*weights.feed_forward, dtype=self._dtype)
        return ImageOp(BlockOp(mdta, gdfn), self._workspaces)

    def prepare(self, value: Any) -> Any:
        """Return a network or tensor on the CPU, numbers as float32; other values as they are."""
        if isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.is_floating_point()):
            return value.cpu().float()
        return value.cpu() if isinstance(value, Tensor) else value

    def place(self, network: nn.Module) -> nn.Module:
        """Return the network on the GPU, its dense layers in the target's precision."""
        _cast(network, self._dtype)
        return network.to(self.device)

    def packable(self, module: nn.Module) -> nn.Module:
        """Return a copy of the module in float32 on the CPU."""
        copied = deepcopy(module)
        remove_sparse_forms(copied)
        prepared: nn.Module = self.prepare(copied)
        return prepared

    def takes(self, x: Tensor) -> bool:
        """Return whether x is an ordinary tensor of the target's precision on its device, and not empty."""
        return is_ordinary(x, self._dtype, self.device.type)

    def run(self, module: nn.Module, *inputs: Any, **named: Any) -> Any:
        """Run a module on the GPU, on inputs from the CPU; return its result in float32 on the CPU."""

        def moved(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.to(self.device, self._dtype if x.is_floating_point() else x.dtype)

        result = self.place(module)(*tree_map(moved, inputs), **tree_map(moved, named))
        return tree_map(self.prepare, result)

    def seconds(self, dense: nn.Module, form: LayerForm, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return the seconds that both are measured to take; see `SparsificationTarget.seconds`."""
        return self._seconds(form.module, shape), self._seconds(deepcopy(dense), shape)

    def block_pays(self, dense: nn.Module, fused: nn.Module, calls: Sequence[CallShape]) -> bool:
        """Return whether the fused form is measured to be faster; see `SparsificationTarget.block_pays`."""
        sparse, before = (
            sum(times * self._seconds(m, shape) for shape, times in calls) for m in (fused, deepcopy(dense))
        )
        return sparse < before

    def _seconds(self, module: nn.Module, shape: tuple[int, ...]) -> float:
        x = torch.randn(shape, dtype=self._dtype, device=self.device)
        return seconds(partial(self.place(module), x), replayed=False)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast a module in place, but not its sparse ops, which have the types that they were packed in."""
    if isinstance(module, TritonOp):
        return
    for child in module.children():
        _cast(child, dtype)
    for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        if t.is_floating_point():
            t.data = t.data.to(dtype)
