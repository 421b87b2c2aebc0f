"""Make the sparse forms of convolutions, linear layers and attention on the CPU, and absorb what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from mirl_kernels.core import cpu
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.conv_transpose import PackedConvTranspose
from mirl_kernels.ops.depthwise import PackedDepthwise
from mirl_kernels.ops.linear import PackedLinear
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_sparse.sparsification.attention import SparseAttention, attention_refusal
from mirl_sparse.sparsification.target import LayerForm, LayerForms, Refusal

Padding = tuple[int, int, int, int]  # top, bottom, left, right


def _padding(m: nn.Conv2d) -> Padding:
    if m.padding == "valid":
        return 0, 0, 0, 0
    if m.padding == "same":
        spans = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        return spans[0] // 2, spans[0] - spans[0] // 2, spans[1] // 2, spans[1] - spans[1] // 2
    assert not isinstance(m.padding, str)
    return m.padding[0], m.padding[0], m.padding[1], m.padding[1]


_PADS: dict[str, Callable[[Padding], nn.Module]] = {
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}


def split_padding(m: nn.Conv2d) -> tuple[nn.Module | None, Padding]:
    """Split the padding of a convolution into a module before it and zeros that it adds itself.

    Args:
        m: The convolution, of any padding mode.

    Returns:
        The module that pads the input, None where zeros or nothing are added, and the (top, bottom, left,
        right) zeros.
    """
    padding = _padding(m)
    if m.padding_mode == "zeros" or not any(padding):
        return None, padding
    top, bottom, left, right = padding
    return _PADS[m.padding_mode]((left, right, top, bottom)), (0, 0, 0, 0)


def _conv(m: nn.Conv2d) -> LayerForm:
    pad, padding = split_padding(m)
    stride, dilation = (m.stride[0], m.stride[1]), (m.dilation[0], m.dilation[1])
    op: cpu.Packed
    if m.groups == m.in_channels > 1:
        op = PackedDepthwise(m.weight, m.bias, stride, padding, dilation, m.in_channels)
        name = "sparse depthwise"
    elif m.kernel_size == (1, 1) and stride == (1, 1) and m.groups == 1 and not any(padding):
        op, name = PackedPointwise(m.weight, m.bias), "sparse 1x1"
    else:
        op, name = PackedConv(m.weight, m.bias, stride, padding, dilation, m.groups), "sparse convolution"
    return LayerForm(nn.Sequential(pad, op) if pad else op, (op,), name)


def _conv_transpose(m: nn.ConvTranspose2d) -> LayerForm | Refusal:
    if m.stride[0] != m.stride[1]:
        return Refusal(f"a transposed convolution with strides {m.stride} has no sparse form")
    assert not isinstance(m.padding, str)
    (p, q), (o, u), (d, e) = m.padding, m.output_padding, m.dilation
    op = PackedConvTranspose(m.weight, m.bias, m.stride[0], (p, q), (o, u), (d, e), m.groups)
    return LayerForm(op, (op,), "sparse sub-pixel convolution")


def _linear(m: nn.Linear) -> LayerForm:
    op = PackedLinear(m.weight, m.bias)
    return LayerForm(op, (op,), "sparse linear")


def _attention(m: nn.MultiheadAttention) -> LayerForm | Refusal:
    if reason := attention_refusal(m):
        return Refusal(reason)
    attention = SparseAttention(m)
    return LayerForm(attention, (attention.q, attention.k, attention.v, attention.out), "sparse projections")


CPU_LAYERS: LayerForms = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv_transpose,
    nn.Linear: _linear,
    nn.MultiheadAttention: _attention,
}
LAYER_TYPES = tuple(CPU_LAYERS)  # whose inner modules are theirs alone


def prunable_weights(m: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module that are pruned: those named ``*weight*``."""
    return [p for name, p in m.named_parameters() if "weight" in name]


def count_nonzero(weights: Iterable[torch.Tensor]) -> tuple[int, int]:
    """Return how many of the weights are not zero, and how many there are."""
    weights = list(weights)
    stored = [w if w.layout == torch.strided else w.to_dense() for w in weights]
    return sum(int(w.count_nonzero()) for w in stored), sum(w.numel() for w in weights)


def has_hooks(m: nn.Module) -> bool:
    """Return whether a hook of the network's owner is called with a module."""
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def weight_refusal(weight: torch.Tensor, name: str = "its weight") -> str | None:
    """Return why the kernels do not take a weight, None where they do; the reason calls it ``name``."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return f"{name} is {weight.dtype} on {weight.device}; the kernels take float32 on the CPU"
    if weight.layout != torch.strided or type(weight) not in (torch.Tensor, nn.Parameter):
        kind = type(weight).__name__ if weight.layout == torch.strided else weight.layout
        return f"{name} is stored as {kind}; the kernels take ordinary tensors"
    if 0 in weight.shape:
        return "it has no weights"
    if not weight.isfinite().all():
        return f"{name} has values that are NaN or infinite"
    return None


def _refusal(m: nn.Module, base: type[nn.Module]) -> str | None:
    """Return why a layer of type ``base`` computes something else, or the kernels do not take its weights."""
    for method in ("forward", "_conv_forward"):
        if getattr(type(m), method, None) is not getattr(base, method, None):
            return f"{type(m).__name__} has its own {method}()"
    if nn.utils.parametrize.is_parametrized(m):
        return "its weight is computed (torch.nn.utils.parametrize)"
    if any(isinstance(value, torch.Tensor) for value in vars(m).values()):
        return "its weight is computed at each call"
    return next(filter(None, map(weight_refusal, m.parameters())), None)


def sparse_layer(m: nn.Module, forms: LayerForms) -> LayerForm | Refusal:
    """Make the sparse form of a layer.

    Args:
        m: Any module.
        forms: The functions that make sparse forms, by type of layer.

    Returns:
        The sparse form, or the reason why there is none.
    """
    base = next((t for t in forms if isinstance(m, t)), None)
    if base is None:
        return Refusal(f"{type(m).__name__} has no sparse form")
    if reason := _refusal(m, base):
        return Refusal(reason)
    return forms[base](m)


_ABSORBING = PackedConv, PackedConvTranspose, PackedDepthwise, PackedPointwise, PackedLinear


def absorb(layer: nn.Module | None, follower: nn.Module) -> bool:
    """Make a sparse layer apply the activation or pixel shuffle behind it to what it stores.

    Args:
        layer: A sparse form; it is changed where it can absorb the follower.
        follower: The module that is called on its result.

    Returns:
        Whether the layer does the follower's work now.
    """
    if isinstance(layer, nn.Sequential):  # a padding and the layer
        layer = layer[-1]
    if not isinstance(layer, _ABSORBING) or has_hooks(follower) or "forward" in vars(follower):
        return False
    free = layer.activation == "none"
    if type(follower) is nn.ReLU and free:
        layer.activation = "relu"
    elif type(follower) is nn.LeakyReLU and free and 0 <= follower.negative_slope <= 1:
        layer.activation, layer.slope = "leaky_relu", follower.negative_slope
    elif type(follower) is nn.GELU and free and follower.approximate == "none":
        layer.activation = "gelu"
    elif type(follower) is nn.PixelShuffle and type(layer) is PackedConv and layer.shuffle == 1:
        layer.shuffle = follower.upscale_factor
    elif type(follower) is nn.PixelUnshuffle and type(layer) is PackedConv and layer.shuffle == 1:
        layer.shuffle = -follower.downscale_factor
    else:
        return False
    return True
