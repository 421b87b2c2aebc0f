"""Train any network on sparse kernels: convolutions, and blocks of Restormer and NAFNet."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mirl_kernels.ops.conv.backward import TrainableConv
from mirl_kernels.ops.gdfn.backward import TrainableGDFN
from mirl_kernels.ops.mdta.backward import TrainableMDTA
from mirl_kernels.ops.naf import naf
from mirl_kernels.ops.naf.backward import TrainableNAF
from mirl_sparse.sparsification.blocks import NAFWeights, RestormerWeights, find_naf, find_restormer
from mirl_sparse.sparsification.layers import has_hooks, weight_refusal
from mirl_training.pruning.mask import Mask

_RESTORMER_LAYERS = (
    "attn.qkv",
    "attn.qkv_dwconv",
    "attn.project_out",
    "ffn.project_in",
    "ffn.dwconv",
    "ffn.project_out",
)
_NAF_LAYERS = "conv1", "conv2", "sca.1", "conv3", "conv4", "conv5"
_LARGEST_DENSITY = 0.35  # of a layer or block: fuller ones take PyTorch's dense operators less time
_Dropout = nn.modules.dropout._DropoutNd


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


class _RestormerForward(_Forward):
    def __init__(self, module: nn.Module, alive: Sequence[Tensor]) -> None:
        super().__init__(module)
        heads = _weights(module).attention.temperature.numel()
        qkv, dwconv, project_out = alive[:3]
        self._mdta = TrainableMDTA(qkv, dwconv, project_out, heads)
        project_in, dwconv, project_out = alive[3:]
        self._gdfn = TrainableGDFN(project_in, dwconv, project_out)

    def __call__(self, x: Tensor) -> Tensor:
        attention, feed_forward = _weights(self.module)
        gain, offset, qkv, dwconv, temperature, project_out, _ = attention
        assert offset is not None
        x = self._mdta(x, gain, offset, qkv, dwconv, temperature.view(-1, 1, 1), project_out)
        gain, offset, project_in, dwconv, project_out, _ = feed_forward
        assert offset is not None
        return self._gdfn(x, gain, offset, project_in, dwconv, project_out)


class _NAFForward(_Forward):
    def __init__(self, module: nn.Module, alive: Sequence[Tensor]) -> None:
        super().__init__(module)
        m: Any = module
        self._norms, self._convs = (m.norm1, m.norm2), (m.conv1, m.conv2, m.sca[1], m.conv3, m.conv4, m.conv5)
        biased = [conv.bias is not None for conv in self._convs]
        self._naf = TrainableNAF(alive, biased, [norm.eps for norm in self._norms])

    def __call__(self, x: Tensor) -> Tensor:
        module: Any = self.module
        if x.ndim != 4 or x.dtype != torch.float32:
            dense: Tensor = type(module).forward(module, x)
            return dense
        return self._naf(
            x,
            [(norm.weight, norm.bias) for norm in self._norms],
            [conv.weight for conv in self._convs],
            [conv.bias for conv in self._convs],
            module.beta.flatten(),
            module.gamma.flatten(),
        )


def _joined(name: str, rest: str) -> str:
    return f"{name}.{rest}" if name else rest


def _weights(block: nn.Module) -> RestormerWeights:
    weights = find_restormer(block)
    assert isinstance(weights, RestormerWeights)
    return weights


def use_sparse_layers(network: nn.Module, mask: Mask) -> None:
    """Let the layers of a network that are sparse enough train on the sparse kernels.

    These are convolutions larger than 1x1 that keep the size of their input (one group, stride 1, zeros
    around it, an odd kernel), blocks of Restormer's family without biases in their convolutions, and NAFNet's
    blocks without dropout. The gradients of pruned weights are zero there, those of all other layers are not.
    Parameters and their names stay as they are. Modules with hooks or a forward of their own are left alone.
    Call it again when the mask changes.

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
        if (layers := _sparse_layers(mask, name, _RESTORMER_LAYERS)) and _is_restormer(m):
            m.__dict__["forward"] = _RestormerForward(m, layers)
            inside.update(m.modules())
        elif (layers := _sparse_layers(mask, name, _NAF_LAYERS)) and _is_naf(m):
            m.__dict__["forward"] = _NAFForward(m, layers)
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


def _sparse_layers(mask: Mask, block: str, names: Sequence[str]) -> list[Tensor] | None:
    """Return the masks of a block's layers, or None if they are too full.

    A weight that is shared with another block, or computed from other weights, has no mask.
    """
    alive = [mask.alive.get(_joined(block, f"{name}.weight")) for name in names]
    masks = [keep for keep in alive if keep is not None]
    nnz, total = sum(int(keep.sum()) for keep in masks), sum(keep.numel() for keep in masks)
    return masks if len(masks) == len(names) and nnz <= _LARGEST_DENSITY * total else None


def _is_restormer(m: nn.Module) -> bool:
    weights = find_restormer(m)
    if not isinstance(weights, RestormerWeights) or _is_watched(m):
        return False
    has_biases = any(bias is not None for half in weights for bias in half.biases)
    return not has_biases and all(half.norm_bias is not None for half in weights)


def _is_naf(m: nn.Module) -> bool:
    weights = find_naf(m)
    if not isinstance(weights, NAFWeights) or _is_watched(m):
        return False
    drops = any(isinstance(part, _Dropout) and part.p > 0 for part in m.modules())
    return not drops and _computes_naf(m, [epsilon for _, _, epsilon in weights.norms])


def _is_watched(m: nn.Module) -> bool:
    """Return whether a part of a block has hooks or a forward of its own."""
    return any(has_hooks(part) or "forward" in vars(part) for part in m.modules())


@torch.no_grad()
def _computes_naf(m: nn.Module, epsilons: Sequence[float]) -> bool:
    """Return whether a block with NAFNet's weights computes what NAFNet's block does, in training.

    It is asked with other weights than its own, whose beta and gamma are zero at first.
    """
    noise = torch.Generator().manual_seed(0)
    values = {name: torch.rand(p.shape, generator=noise) - 0.5 for name, p in m.named_parameters()}
    norms = [(f"norm{i}.weight", f"norm{i}.bias") for i in (1, 2)]
    layers = [f"{name}.weight" for name in _NAF_LAYERS]
    if not {"beta", "gamma", *norms[0], *norms[1], *layers} <= set(values):
        return False  # a parameter is shared, or computed from others
    x = torch.rand(1, values["beta"].numel(), 3, 5, generator=noise)
    expected = naf(
        x,
        [(values[gain], values[bias], eps) for (gain, bias), eps in zip(norms, epsilons, strict=True)],
        [values[name] for name in layers],
        [values.get(f"{name}.bias") for name in _NAF_LAYERS],
        values["beta"].flatten(),
        values["gamma"].flatten(),
    )
    with torch.random.fork_rng(devices=[]):
        try:
            result = functional_call(copy.deepcopy(m).train(), values, x)
        except Exception:  # the forward of a block that takes something else than one image
            return False
    same_kind = isinstance(result, Tensor) and result.shape == x.shape
    return same_kind and torch.allclose(result, expected, atol=1e-4, rtol=1e-3)
