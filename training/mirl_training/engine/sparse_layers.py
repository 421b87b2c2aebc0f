"""Train any network on sparse kernels: convolutions and Restormer's blocks, by surviving weights alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from mirl_kernels.ops.conv.backward import TrainableConv
from mirl_kernels.ops.gdfn.backward import TrainableGDFN
from mirl_kernels.ops.mdta.backward import TrainableMDTA
from mirl_sparse.sparsification.blocks import RestormerWeights, find_restormer
from mirl_sparse.sparsification.layers import has_hooks, weight_refusal
from mirl_training.pruning.mask import Mask

_LAYERS = "attn.qkv", "attn.qkv_dwconv", "attn.project_out", "ffn.project_in", "ffn.dwconv", "ffn.project_out"
_LARGEST_DENSITY = 0.35  # of a layer: fuller ones take PyTorch's dense operators less time


class _Forward:
    """Stand in the place of a module's ``forward``, as an attribute of the module itself."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


class _ConvForward(_Forward):
    def __init__(self, module: nn.Conv2d, alive: Tensor) -> None:
        super().__init__(module)
        self._conv = TrainableConv(alive)

    def __call__(self, x: Tensor) -> Tensor:
        module: Any = self.module
        if x.ndim != 4 or x.dtype != torch.float32:
            dense: Tensor = nn.Conv2d.forward(module, x)
            return dense
        y = self._conv(x, module.weight)
        return y if module.bias is None else y + module.bias.view(-1, 1, 1)


class _BlockForward(_Forward):
    def __init__(self, module: nn.Module, mask: Mask, name: str) -> None:
        super().__init__(module)

        def alive(*layers: str) -> list[Tensor]:
            return [mask.alive[_joined(name, f"{layer}.weight")] for layer in layers]

        heads = _weights(module).attention.temperature.numel()
        qkv, dwconv, project_out = alive("attn.qkv", "attn.qkv_dwconv", "attn.project_out")
        self._mdta = TrainableMDTA(qkv, dwconv, project_out, heads)
        project_in, dwconv, project_out = alive("ffn.project_in", "ffn.dwconv", "ffn.project_out")
        self._gdfn = TrainableGDFN(project_in, dwconv, project_out)

    def __call__(self, x: Tensor) -> Tensor:
        attention, feed_forward = _weights(self.module)
        gain, offset, qkv, dwconv, temperature, project_out, _ = attention
        assert offset is not None
        x = self._mdta(x, gain, offset, qkv, dwconv, temperature.view(-1, 1, 1), project_out)
        gain, offset, project_in, dwconv, project_out, _ = feed_forward
        assert offset is not None
        return self._gdfn(x, gain, offset, project_in, dwconv, project_out)


def _joined(name: str, rest: str) -> str:
    return f"{name}.{rest}" if name else rest


def _weights(block: nn.Module) -> RestormerWeights:
    weights = find_restormer(block)
    assert isinstance(weights, RestormerWeights)
    return weights


def use_sparse_layers(network: nn.Module, mask: Mask) -> None:
    """Let the layers of a network that are sparse enough train on the sparse kernels.

    These are convolutions larger than 1x1 that keep the size of their input (one group, stride 1, zeros
    around it, an odd kernel), and blocks of Restormer's family without biases in their convolutions. The
    gradients of pruned weights are zero there, those of all other layers are not. Parameters and their names
    stay as they are. Modules with hooks or a forward of their own are left alone. Call it again when the mask
    changes.

    Args:
        network: The network, float32, on the CPU; it is changed in place.
        mask: The mask of the network's prunable weights.

    Raises:
        MaskError: Mask and network do not fit.
    """
    mask.check(network)
    use_dense_layers(network)
    inside: set[nn.Module] = set()
    for name, m in network.named_modules():
        if m in inside or "forward" in vars(m) or has_hooks(m):
            continue
        if _is_block(m, name, mask):
            m.__dict__["forward"] = _BlockForward(m, mask, name)
            inside.update(m.modules())
        elif isinstance(m, nn.Conv2d) and _is_sparse(m, alive := mask.alive.get(_joined(name, "weight"))):
            assert alive is not None
            m.__dict__["forward"] = _ConvForward(m, alive)


def use_dense_layers(network: nn.Module) -> None:
    """Let a network compute in plain PyTorch again."""
    for m in network.modules():
        if isinstance(vars(m).get("forward"), _Forward):
            del m.__dict__["forward"]


def _is_sparse(m: nn.Conv2d, alive: Tensor | None) -> bool:
    """Return whether a convolution is one that the kernels train, and large and sparse enough to gain."""
    same: Collection[object] = ("same", tuple(k // 2 for k in m.kernel_size))
    return (
        alive is not None
        and weight_refusal(m.weight) is None
        and type(m).forward is nn.Conv2d.forward
        and (m.groups, m.stride, m.dilation, m.padding_mode) == (1, (1, 1), (1, 1), "zeros")
        and m.padding in same
        and all(k % 2 for k in m.kernel_size)
        and m.kernel_size != (1, 1)
        and float(alive.float().mean()) <= _LARGEST_DENSITY
    )


def _is_block(m: nn.Module, name: str, mask: Mask) -> bool:
    weights = find_restormer(m)
    if not isinstance(weights, RestormerWeights) or any(map(has_hooks, m.modules())):
        return False
    has_biases = any(bias is not None for half in weights for bias in half.biases)
    has_norms = all(half.norm_bias is not None for half in weights)
    alive = [mask.alive.get(_joined(name, f"{layer}.weight")) for layer in _LAYERS]
    if any(keep is None for keep in alive):  # shared with another block, or computed from other weights
        return False
    density = sum(int(keep.sum()) for keep in alive if keep is not None) / max(
        1, sum(keep.numel() for keep in alive if keep is not None)
    )
    return has_norms and not has_biases and density <= _LARGEST_DENSITY
