"""The layers and blocks of any network on the Triton kernels, for `sparsify(backend="triton")`. No GPU has run this yet; the
interpreter has.
"""

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
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.triton import PRECISIONS, check_gpu, device, seconds, workspace
from mirl_sparse.sparsification.sparsify import Call, Form, Target, Unsupported, padded, restormer_block

_TOLERANCES = {
    "float16": 2e-2,
    "bfloat16": 1e-1,
    "float32": 2e-3,
}  # PyTorch's own convolutions of float32 are in TF32


_SIZES_KEPT = 16  # of features: those of four images at four levels


class _Workspaces:
    """What the ops of one network, of which one runs after the other, need again at the next features of a size, of each stream."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Any, Workspace] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_seen": OrderedDict()}

    @contextmanager
    def used(self, x: Tensor) -> Iterator[None]:
        """By the ops called meanwhile on x (B, C, H, W). What a graph that is being recorded needs is the graph's."""
        if x.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            with workspace(x.device, {}).used():
                yield
            return
        key = len(x), x.shape[2:], x.device, torch.cuda.current_stream().cuda_stream
        kept = self._seen.pop(key, None) or workspace(x.device, {})
        with kept.used():
            yield
        self._seen[key] = kept
        while len(self._seen) > _SIZES_KEPT:
            self._seen.popitem(last=False)


class _Op(nn.Module):
    """An op of the Triton kernels, with the workspaces that it shares with others."""

    def __init__(self, op: nn.Module, workspaces: _Workspaces) -> None:
        super().__init__()
        self.op, self.workspaces = op, workspaces

    def run(self, x: Tensor) -> Tensor:
        """Of x (B, C, H, W), contiguous."""
        with (
            torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext(),
            self.workspaces.used(x),
        ):
            y: Tensor = self.op(x)
        return y


class _Planes(_Op):
    """On images (B, C, H, W) or (C, H, W) of any strides."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.run((x if x.ndim == 4 else x[None]).contiguous())
        return y if x.ndim == 4 else y[0]


class _Rows(_Op):
    """A 1x1 convolution as a linear layer: (..., C) to (..., O), whose rows become pixels and back."""

    def forward(self, x: Tensor) -> Tensor:
        planes = x.reshape(-1, x.shape[-1]).T.contiguous()
        y = self.run(planes[None, :, None])
        return y[0, :, 0].T.contiguous().view(*x.shape[:-1], y.shape[1])


class GPUTarget(Target):
    """Activations of a precision on the GPU, where each layer is timed both ways."""

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise UserError(f'precision is "{precision}"; expected one of {", ".join(PRECISIONS)}')
        check_gpu()
        from mirl_kernels.ops.gdfn.triton import TritonGDFN
        from mirl_kernels.ops.mdta.triton import TritonMDTA

        workspaces = _Workspaces()
        self._planes, self._rows = (partial(kind, workspaces=workspaces) for kind in (_Planes, _Rows))
        self._dtype, self.device, self.tolerance = PRECISIONS[precision], device(), _TOLERANCES[precision]
        self.doubt = f", or want more digits than {precision} has"
        self.layers = {nn.Conv2d: self._conv, nn.Linear: self._linear}
        mdta, gdfn = (partial(op, dtype=self._dtype) for op in (TritonMDTA, TritonGDFN))
        self.blocks = [
            lambda m: restormer_block(m, mdta, gdfn, lambda *halves: self._planes(nn.Sequential(*halves)))
        ]

    def _conv(self, m: nn.Conv2d) -> Form:
        from mirl_kernels.ops.conv.triton import TritonConv
        from mirl_kernels.ops.pointwise.triton import TritonPointwise

        if m.groups == m.in_channels > 1:
            raise Unsupported("a depthwise convolution has no sparse form on GPUs")
        pad, padding = padded(m)
        op: nn.Module
        if m.kernel_size == m.stride == (1, 1) and m.groups == 1 and not any(padding):
            op, name = TritonPointwise(m.weight, m.bias, self._dtype), "sparse 1x1"
        else:
            stride, dilation = (m.stride[0], m.stride[1]), (m.dilation[0], m.dilation[1])
            op = TritonConv(m.weight, m.bias, stride, padding, dilation, m.groups, dtype=self._dtype)
            name = "sparse convolution"
        op = self._planes(op)
        return Form(nn.Sequential(pad, op) if pad else op, (op,), name)

    def _linear(self, m: nn.Linear) -> Form:
        from mirl_kernels.ops.pointwise.triton import TritonPointwise

        op = self._rows(TritonPointwise(m.weight[:, :, None, None], m.bias, self._dtype))
        return Form(op, (op,), "sparse linear")

    def take(self, what: Any) -> Any:
        """float32 on the CPU."""
        floating = isinstance(what, nn.Module) or (isinstance(what, Tensor) and what.is_floating_point())
        return what.cpu().float() if floating else what.cpu() if isinstance(what, Tensor) else what

    def put(self, network: nn.Module) -> nn.Module:
        _cast(network, self._dtype)
        return network.to(self.device)

    def run(self, module: nn.Module, *inputs: Any) -> Any:
        def there(x: Any) -> Any:
            return (
                x.to(self.device, self._dtype if x.is_floating_point() else x.dtype)
                if isinstance(x, Tensor)
                else x
            )

        return tree_map(self.take, self.put(module)(*tree_map(there, inputs)))

    def seconds(self, dense: nn.Module, form: Form, shape: tuple[int, ...]) -> tuple[float, float]:
        return self._seconds(form.module, shape), self._seconds(deepcopy(dense), shape)

    def block_pays(self, dense: nn.Module, block: nn.Module, calls: Sequence[Call]) -> bool:
        sparse, before = (
            sum(times * self._seconds(m, shape) for shape, times in calls) for m in (block, deepcopy(dense))
        )
        return sparse < before

    def _seconds(self, module: nn.Module, shape: tuple[int, ...]) -> float:
        x = torch.randn(shape, dtype=self._dtype, device=self.device)
        return seconds(partial(self.put(module), x), replayed=False)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """In place, but for sparse ops, which are of the types that they were packed in."""
    if isinstance(module, _Op):
        return
    for child in module.children():
        _cast(child, dtype)
    for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        if t.is_floating_point():
            t.data = t.data.to(dtype)
