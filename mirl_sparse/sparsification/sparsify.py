"""Any pruned network, its layers swapped for sparse ones.

Blocks of Restormer's family, of NAFNet and prompts are swapped whole for fused ops, on a CPU wherever they occur (at 20% of wide
blocks' weights that is level with dense, above it loses); convolutions, linear layers and attention projections one by one, where
the cost model finds that it pays. Nothing is swapped that does not compute the same as before.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mirl_kernels.core import cpu
from mirl_kernels.ops.block import PackedBlock
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.conv_transpose import PackedConvTranspose
from mirl_kernels.ops.depthwise import PackedDepthwise
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.layer_norm import EPS
from mirl_kernels.ops.linear import PackedLinear
from mirl_kernels.ops.mdta import PackedMDTA
from mirl_kernels.ops.naf import PackedNAF
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.prompt import PackedPrompt
from mirl_sparse.architectures.promptir.network import PromptIR, remove_pruning
from mirl_sparse.errors import UserError
from mirl_sparse.performance.cost import cost_model, dense_quantities
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.sparsification.attention import SparseAttention
from mirl_sparse.tickets.description import describe

TOLERANCE = 1e-4  # of a swapped module against the dense one, relative to the largest result, or to 1 where that is less
_NOMINAL_SIDE = 64  # of the images that layers see, where no example input says more


@dataclass(frozen=True)
class ConvertedLayer:
    """What became of a module that holds weights, and why; times are of all calls for the example input, predicted for a CPU,
    measured on a GPU."""

    name: str
    kind: str
    kept: int
    total: int
    implementation: str
    reason: str
    sparse_ms: float | None = None
    dense_ms: float | None = None

    @property
    def density(self) -> float:
        return self.kept / max(1, self.total)


@dataclass(frozen=True)
class ConversionReport:
    """Every module that holds weights, in the network's order."""

    layers: tuple[ConvertedLayer, ...]

    @property
    def density(self) -> float:
        """Nonzero weights over all, of the modules in the report."""
        return sum(x.kept for x in self.layers) / max(1, sum(x.total for x in self.layers))

    def __str__(self) -> str:
        rows = [("layer", "module", "density", "runs as", "sparse", "dense", "why")]
        for x in self.layers:
            sparse, dense = ("" if t is None else f"{t:.2f} ms" for t in (x.sparse_ms, x.dense_ms))
            rows.append(
                (x.name or "(root)", x.kind, f"{x.density:.1%}", x.implementation, sparse, dense, x.reason)
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = (
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        )
        swapped = sum(x.implementation != "dense" for x in self.layers)
        return "\n".join([*lines, f"{swapped} of {len(self.layers)} swapped, density {self.density:.2%}"])


class Unsupported(Exception):
    """Why a module has no sparse form."""


class Form(NamedTuple):
    """A sparse form of a module: what stands in its place, the packed ops in it, and what to call it."""

    module: nn.Module
    ops: tuple[nn.Module, ...]
    name: str


def _padding(m: nn.Conv2d) -> tuple[int, int, int, int]:
    """(top, bottom, left, right)."""
    if m.padding == "valid":
        return 0, 0, 0, 0
    if m.padding == "same":
        spans = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        return spans[0] // 2, spans[0] - spans[0] // 2, spans[1] // 2, spans[1] - spans[1] // 2
    assert not isinstance(m.padding, str)
    return m.padding[0], m.padding[0], m.padding[1], m.padding[1]


_PADS: dict[str, Callable[[tuple[int, int, int, int]], nn.Module]] = {
    "reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "circular": nn.CircularPad2d,
}  # fmt: skip


def padded(m: nn.Conv2d) -> tuple[nn.Module | None, tuple[int, int, int, int]]:
    """What pads the input of a convolution before it, None for nothing, and the (top, bottom, left, right) zeros that it adds itself."""
    padding = _padding(m)
    if m.padding_mode == "zeros" or not any(padding):
        return None, padding
    top, bottom, left, right = padding
    return _PADS[m.padding_mode]((left, right, top, bottom)), (0, 0, 0, 0)


def _conv(m: nn.Conv2d) -> Form:
    pad, padding = padded(m)
    stride, dilation = (m.stride[0], m.stride[1]), (m.dilation[0], m.dilation[1])
    op: cpu.Packed
    if m.groups == m.in_channels > 1:
        op, name = (
            PackedDepthwise(m.weight, m.bias, stride, padding, dilation, m.in_channels),
            "sparse depthwise",
        )
    elif m.kernel_size == (1, 1) and stride == (1, 1) and m.groups == 1 and not any(padding):
        op, name = PackedPointwise(m.weight, m.bias), "sparse 1x1"
    else:
        op, name = PackedConv(m.weight, m.bias, stride, padding, dilation, m.groups), "sparse convolution"
    return Form(nn.Sequential(pad, op) if pad else op, (op,), name)


def _conv_transpose(m: nn.ConvTranspose2d) -> Form:
    if m.stride[0] != m.stride[1]:
        raise Unsupported(f"a transposed convolution with strides {m.stride} has no sparse form")
    assert not isinstance(m.padding, str)
    (p, q), (o, u), (d, e) = m.padding, m.output_padding, m.dilation
    op = PackedConvTranspose(m.weight, m.bias, m.stride[0], (p, q), (o, u), (d, e), m.groups)
    return Form(op, (op,), "sparse sub-pixel convolution")


def _linear(m: nn.Linear) -> Form:
    op = PackedLinear(m.weight, m.bias)
    return Form(op, (op,), "sparse linear")


def _attention(m: nn.MultiheadAttention) -> Form:
    try:
        attention = SparseAttention(m)
    except ValueError as error:
        raise Unsupported(str(error)) from None
    return Form(attention, (attention.q, attention.k, attention.v, attention.out), "sparse projections")


_LAYERS: dict[type[nn.Module], Callable[[Any], Form]] = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv_transpose,
    nn.Linear: _linear,
    nn.MultiheadAttention: _attention,
}


def _weights(m: nn.Module) -> list[nn.Parameter]:
    """What is pruned of a module."""
    return [p for n, p in m.named_parameters() if "weight" in n]


def _kept(weights: list[nn.Parameter]) -> tuple[int, int]:
    """How many of the weights are not zero, and how many there are."""
    return sum(int(w.count_nonzero()) for w in weights), sum(w.numel() for w in weights)


def _hooked(m: nn.Module) -> bool:
    """Whether the network's owner is told when a module is called."""
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def _layer(m: nn.Module, forms: Mapping[type[nn.Module], Callable[[Any], Form]]) -> Form:
    """The sparse form of a layer, one of ``forms`` by its type, or why there is none."""
    base = next((t for t in forms if isinstance(m, t)), None)
    if base is None:
        raise Unsupported(f"{type(m).__name__} has no sparse form")
    own = [
        f"{n}()"
        for n in ("forward", "_conv_forward")
        if getattr(type(m), n, None) is not getattr(base, n, None)
    ]
    if own:
        raise Unsupported(f"{type(m).__name__} has its own {own[0]}")
    if nn.utils.parametrize.is_parametrized(m):
        raise Unsupported("its weight is computed (torch.nn.utils.parametrize)")
    if _hooked(m):
        raise Unsupported("it has hooks")
    for weight in _weights(m):
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise Unsupported(
                f"its weight is {weight.dtype} on {weight.device}; the kernels take float32 on the CPU"
            )
        if 0 in weight.shape:
            raise Unsupported("it has no weights")
    return forms[base](m)


def _absorbed(layer: nn.Module | None, follower: nn.Module) -> bool:
    """Whether the sparse layer could be made to apply the activation or pixel shuffle behind it to what it stores."""
    if isinstance(layer, nn.Sequential):  # a padding and the layer
        layer = layer[-1]
    if not isinstance(
        layer, (PackedConv, PackedConvTranspose, PackedDepthwise, PackedPointwise, PackedLinear)
    ) or _hooked(follower):
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


def _difference(expected: Any, got: Any) -> float:
    """How far results are apart, relative to the largest values, or to 1 where these are less; infinite where they are not of one kind."""
    pairs = list(zip_longest(_tensors(expected), _tensors(got)))
    if any(a is None or b is None or a.shape != b.shape for a, b in pairs):
        return math.inf
    wide = [[t if t.is_complex() else t.double() for t in pair] for pair in pairs if pair[0].numel()]
    differences = [((b - a).abs().max() / a.abs().max().clamp(1.0)).item() for a, b in wide]
    return max((math.inf if math.isnan(x) else x for x in differences), default=0.0)


class Block(NamedTuple):
    """The fused form of a block of ``channels`` channels, and what the report says of its parts."""

    module: nn.Module
    channels: int
    parts: tuple[tuple[str, str, str], ...]


def fused_half(op: Any, norm: Any, *parts: Any) -> Any:
    """One half of a block from its norm, its convolutions and, for MDTA, its temperature."""
    body = getattr(norm, "body", norm)
    if getattr(body, "eps", EPS) != EPS:
        raise TypeError("another epsilon")
    weights = [part if isinstance(part, Tensor) else part.weight for part in parts]
    biases = [part.bias for part in parts if not isinstance(part, Tensor)]
    return op(body.weight, getattr(body, "bias", None), *weights, biases=biases)


def restormer_block(
    m: Any, mdta: Any = PackedMDTA, gdfn: Any = PackedGDFN, block: Any = PackedBlock
) -> Block | None:
    """x + attn(norm1(x)), then x + ffn(norm2(x)), as ``block`` of the two; None for a module that is not built so."""
    try:
        a, f = m.attn, m.ffn
        both = block(
            fused_half(mdta, m.norm1, a.qkv, a.qkv_dwconv, a.temperature, a.project_out),
            fused_half(gdfn, m.norm2, f.project_in, f.dwconv, f.project_out),
        )
        return Block(both, a.qkv.in_channels, (
            ("attn", "fused MDTA", "norm, convolutions, attention and residual in one op"),
            ("ffn", "fused GDFN", "norm, convolutions, gate and residual in one op"),
        ))  # fmt: skip
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
        return None


def _prompt_block(m: Any) -> Block | None:
    """PromptIR's prompt block; None for a module that is not built so."""
    try:
        linear, conv = m.linear_layer, m.conv3x3
        fused = PackedPrompt(linear.weight, linear.bias, m.prompt_param, conv.weight)
        return Block(
            fused, linear.in_features, (("", "fused prompt", "mixture, resize and convolution in one op"),)
        )
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
        return None


def _naf_block(m: Any) -> Block | None:
    """NAFNet's block; None for a module that is not built so."""
    try:
        pool, sca = m.sca
        if not isinstance(pool, nn.AdaptiveAvgPool2d) or pool.output_size not in (1, (1, 1)):
            return None  # others average over windows, which only a large image shows
        convs = m.conv1, m.conv2, sca, m.conv3, m.conv4, m.conv5
        norms = [(norm.weight, norm.bias, norm.eps) for norm in (m.norm1, m.norm2)]
        fused = PackedNAF(
            norms, [c.weight for c in convs], [c.bias for c in convs], m.beta.flatten(), m.gamma.flatten()
        )
        reason = "norms, convolutions, gates, channel attention and residuals in one op"
        return Block(fused, m.conv1.in_channels, (("", "fused NAFNet block", reason),))
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError):
        return None


class Call(NamedTuple):
    """Inputs of one shape that a module was given, and how many times."""

    shape: tuple[int, ...]
    times: int


class Target:
    """Where a converted network is to run: the device, the forms that layers and blocks have there, and by how much results may be off,
    relative to the largest, and why else they might. This one is the CPU, float32, by the cost model."""

    device = torch.device("cpu")
    layers: Mapping[type[nn.Module], Callable[[Any], Form]] = _LAYERS
    blocks: Sequence[Callable[[Any], Block | None]] = restormer_block, _prompt_block, _naf_block
    tolerance = TOLERANCE
    doubt = ""

    def __init__(self) -> None:
        cpu.library()
        self._model = cost_model()

    def take(self, what: Any) -> Any:
        """A network or an input as it is converted: the dense network's results are those for such inputs."""
        return what

    def put(self, network: nn.Module) -> nn.Module:
        """The network where it is to run."""
        return network

    def run(self, module: nn.Module, *inputs: Any) -> Any:
        """What a module gives there, for inputs as they are taken, and as those the results."""
        return module(*inputs)

    def seconds(self, dense: nn.Module, form: Form, shape: tuple[int, ...]) -> tuple[float, float]:
        """What a layer's form and the layer take for an input of that shape."""
        sparse = sum(self._model.seconds(_quantities(op, shape)) for op in form.ops)
        return sparse, self._model.seconds(dense_quantities(dense, shape))

    def block_pays(self, dense: nn.Module, block: nn.Module, calls: Sequence[Call]) -> bool:
        """Whether to take a block's form, where it is called so."""
        return True


@torch.no_grad()
def _calls(network: nn.Module, example: tuple[Any, ...]) -> tuple[dict[int, list[Call]], set[int], Any]:
    """What each module of the network was called on for the example, by its id; which were called otherwise than with one
    argument; and the network's result."""
    seen: dict[int, Counter[tuple[int, ...]]] = {}
    odd: set[int] = set()

    def note(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = next((x for x in (*args, *named.values()) if isinstance(x, Tensor)), None)
        if first is not None:
            seen.setdefault(id(module), Counter())[tuple(first.shape)] += 1
        if named or len(args) != 1:
            odd.add(id(module))

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in network.modules()]
    try:
        result = network(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return {key: [Call(*item) for item in shapes.items()] for key, shapes in seen.items()}, odd, result


@dataclass
class _Conversion:
    """One conversion under way."""

    calls: dict[int, list[Call]] | None
    odd: set[int]  # modules that are called otherwise than with one argument
    read: Mapping[str, str]  # modules that stay as they are, by name, for what the network reads of them
    target: Target
    names: dict[int, str] = field(
        default_factory=dict
    )  # of what was swapped, by the ids of what stands in its place
    layers: list[ConvertedLayer] = field(default_factory=list)
    done: dict[int, nn.Module] = field(default_factory=dict)  # a module may be used in several places

    def visit(self, m: nn.Module, name: str) -> nn.Module:
        """The module to stand in the place of m."""
        if id(m) not in self.done:
            self.done[id(m)] = m  # else a module that contains itself would never end
            self.done[id(m)] = self._convert(m, name)
        return self.done[id(m)]

    def _convert(self, m: nn.Module, name: str) -> nn.Module:
        whole = name not in self.read and id(m) not in self.odd and not any(map(_hooked, m.modules()))
        for block in filter(None, (recognise(m) for recognise in self.target.blocks if whole)):
            probe = _noise(1, block.channels, 17, 23)
            calls = [Call((1, block.channels, _NOMINAL_SIDE, _NOMINAL_SIDE), 1)]
            if self.calls is not None:
                calls = self.calls.get(id(m), [])
            # Dark images show what small numbers a norm adds.
            same = calls and self._same(m, block.module, probe) and self._same(m, block.module, probe * 1e-3)
            if same and self.target.block_pays(m, block.module, calls):
                for part, implementation, reason in block.parts:
                    where = ".".join(filter(None, (name, part)))
                    self._report(m.get_submodule(part), where, implementation, reason)
                self.names[id(block.module)] = name
                return block.module
        if own := [p for p in m.parameters(recurse=False) if p.numel()]:
            return self._swap(m, name, own)
        return self._children(m, name)

    def _same(self, dense: nn.Module, sparse: nn.Module, *inputs: Tensor) -> bool:
        """Whether both give the same."""
        try:
            return _difference(dense(*inputs), self.target.run(sparse, *inputs)) <= self.target.tolerance
        except (
            RuntimeError,
            TypeError,
            ValueError,
        ):  # what only looks like a block that we know may not take it
            return False

    def _children(self, m: nn.Module, name: str) -> nn.Module:
        before = list(m._modules.items())
        for child_name, child in before:
            if child is not None:
                m._modules[child_name] = self.visit(child, f"{name}.{child_name}" if name else child_name)
        if type(m).forward is nn.Sequential.forward:
            last = None  # layer that absorbs what follows
            for child_name, child in before:
                if child is None or not self._alone(child, m):
                    last = None
                elif last and _absorbed(m._modules[last], child):
                    m._modules[child_name] = nn.Identity()
                    self._absorbs(f"{name}.{last}" if name else last, child)
                else:
                    last = child_name if isinstance(child, tuple(_LAYERS)) else None
        return m

    def _absorbs(self, name: str, follower: nn.Module) -> None:
        """Say in the report of the layer ``name`` what it absorbs."""
        for i, layer in enumerate(self.layers):
            if layer.name == name:
                self.layers[i] = replace(
                    layer, implementation=f"{layer.implementation} + {type(follower).__name__}"
                )

    def _alone(self, child: nn.Module, parent: nn.Module) -> bool:
        """Whether the example shows that a child runs when, and only when, its parent does."""
        calls, parents = ([times for _, times in (self.calls or {}).get(id(m), [])] for m in (child, parent))
        return bool(calls) and sum(calls) == sum(parents)

    def _swap(self, m: nn.Module, name: str, own: list[nn.Parameter]) -> nn.Module:
        kept, total = _kept(own)

        def report(implementation: str, reason: str, *times: float) -> None:
            self.layers.append(
                ConvertedLayer(name, type(m).__name__, kept, total, implementation, reason, *times)
            )

        try:
            if name in self.read:
                raise Unsupported(f"the network reads its {self.read[name]}")
            if id(m) in self.odd and not isinstance(m, nn.MultiheadAttention):
                raise Unsupported("it is called with more than its input, or by name")
            form = _layer(m, self.target.layers)
        except Unsupported as error:
            report("dense", str(error))
            return m if isinstance(m, tuple(_LAYERS)) else self._children(m, name)
        kept, total = _kept(_weights(m))
        if self.calls is not None and id(m) not in self.calls:
            report("dense", "the example input never calls it")
            return m
        if not self._same(m, form.module, *_probe(m)):
            report("dense", "its sparse form does not give the same")
            return m
        sparse = dense = 0.0
        for shape, times in self._shapes(m):
            each = self.target.seconds(m, form, shape)
            sparse, dense = sparse + times * each[0], dense + times * each[1]
        if sparse > dense:
            report("dense", "dense is faster", sparse * 1e3, dense * 1e3)
            return m
        report(form.name, "sparse is faster", sparse * 1e3, dense * 1e3)
        self.names |= dict.fromkeys(map(id, (form.module, *form.ops)), name)
        return form.module

    def _shapes(self, m: nn.Module) -> list[Call]:
        if self.calls is not None:
            return self.calls[id(m)]
        if isinstance(m, nn.Linear):
            return [Call((_NOMINAL_SIDE**2, m.in_features), 1)]
        if isinstance(m, nn.MultiheadAttention):
            return [Call((_NOMINAL_SIDE, _NOMINAL_SIDE, m.embed_dim), 1)]
        assert isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))
        return [Call((1, m.in_channels, _NOMINAL_SIDE, _NOMINAL_SIDE), 1)]

    def _report(self, m: nn.Module, name: str, implementation: str, reason: str) -> None:
        kept, total = _kept(_weights(m))
        self.layers.append(ConvertedLayer(name, type(m).__name__, kept, total, implementation, reason))


def _quantities(op: nn.Module, shape: tuple[int, ...]) -> Counter[str]:
    if isinstance(op, PackedLinear):
        return op.quantities(max(1, torch.Size(shape[:-1]).numel()))
    assert isinstance(op, cpu.Packed)
    batch, _, height, width = shape if len(shape) == 4 else (1, *shape)
    return op.quantities(batch, height, width)


def _probe(m: nn.Module) -> list[Tensor]:
    """Inputs that a layer can take."""
    shapes: list[tuple[int, ...]]
    if isinstance(m, nn.Linear):
        shapes = [(37, m.in_features)]
    elif isinstance(m, nn.MultiheadAttention):
        shapes = [(9, 9, m.embed_dim), (9, 9, m.kdim), (9, 9, m.vdim)]
    else:
        assert isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))
        spans = [d * (k - 1) + 1 for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        shapes = [(1, m.in_channels, spans[0] + 11, spans[1] + 17)]
    return [_noise(*shape) for shape in shapes]


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def _copied(module: nn.Module) -> nn.Module:
    """A deep copy whose pruned weights (torch.nn.utils.prune) are weights again."""
    # Weights that a pruning hook computed are no leaves, which deepcopy refuses.
    memo = {id(v): v.detach().clone() for m in module.modules() for v in vars(m).values()
            if isinstance(v, Tensor) and not v.is_leaf}  # fmt: skip
    copied = copy.deepcopy(module, memo)
    remove_pruning(copied)
    return copied


def _own(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A copy of them: there are networks that write to what they are given."""
    return tuple(a.detach().clone() if isinstance(a, Tensor) else copy.deepcopy(a) for a in arguments)


def _tensors(result: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples, dicts and dataclasses."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, dict):
        for value in result.values():
            yield from _tensors(value)
    elif isinstance(result, (list, tuple)):
        for value in result:
            yield from _tensors(value)
    elif is_dataclass(result):
        for part in fields(result):
            yield from _tensors(getattr(result, part.name))


@torch.no_grad()
def sparsify(module: nn.Module, example_input: Tensor | tuple[Any, ...] | None = None, backend: str = "cpu",
            precision: str | None = None) -> nn.Module:  # fmt: skip
    """A copy of a pruned network, in eval mode, that runs its zeros no more; what became of every layer, and why, is in
    its ``report``.

    ``example_input`` (a tensor, or a tuple of arguments) is run through the network once: it says how large the images
    are that each layer sees, which decides what pays, and the converted network must give the same for it
    (within 1e-4 of its largest value, or of 1 where that is less, else UserError). Without it, layers are chosen for images of 64x64.

    A `PromptIR` becomes a `SparseRestorer`, with no need for an example. The result runs float32 on the CPU, for inference only. It can be copied, pickled, saved by its state_dict
    and loaded into another conversion of the same network, compiled by torch.compile and exported. The fast path of
    torch.nn.TransformerEncoder is turned off: what it makes zero, padded positions, is not then.

    With ``backend`` "triton" it runs on the GPU instead, for inputs there of ``precision`` ("float16", the default, "bfloat16" or "float32"), within
    2e-2 (1e-1, 2e-3) of the dense network in float32: convolutions but depthwise ones, linear layers and Restormer's blocks are
    swapped where they are measured to be faster there than PyTorch's dense operators. It is not compiled or exported, and a
    PromptIR's restorer takes float32. BackendError where there is no GPU, or no Triton.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"module is {type(module).__name__}; expected a torch.nn.Module")
    if backend not in ("cpu", "triton"):
        raise UserError(f'backend is "{backend}"; expected "cpu" or "triton"')
    if backend == "triton":
        from mirl_sparse.sparsification.triton import GPUTarget

        target: Target = GPUTarget(precision or "float16")
    elif precision not in (None, "float32"):
        raise UserError(f'precision is "{precision}" on backend "cpu"; expected "float32"')
    else:
        target = Target()
    copied = target.take(_copied(module).eval().requires_grad_(False))
    if (
        isinstance(copied, PromptIR)
        and type(copied).forward is PromptIR.forward
        and not any(map(_hooked, copied.modules()))
    ):
        restorer = SparseRestorer(copied.to(target.device), backend, precision=precision)
        restorer.report = ConversionReport(tuple(
            ConvertedLayer(x.name, "PromptIR", x.kept, x.total, "SparseRestorer", x.implementation)
            for x in describe(copied).layers
        ))  # type: ignore[assignment]  # fmt: skip
        return restorer
    example = example_input if isinstance(example_input, tuple) or example_input is None else (example_input,)
    if example is not None:
        example = tree_map(target.take, example)
    read: dict[str, str] = {}
    while True:
        # Fast paths read weights that will be packed.
        for m in copied.modules():
            if isinstance(m, nn.TransformerEncoderLayer):
                m.activation_relu_or_gelu = 0
            if isinstance(m, nn.TransformerEncoder):
                m.use_nested_tensor = False
        calls, odd, expected = None, set[int](), None
        if example is not None:
            calls, odd, result = _calls(copied, _own(example))
            expected = [t.clone() for t in _tensors(result)]  # which the network may write to again
            if not expected:
                raise UserError(
                    f"the network gives {type(result).__name__} for the example input; expected tensors, to compare them"
                )
        conversion = _Conversion(calls, odd, read, target)
        converted = target.put(conversion.visit(copied, ""))
        converted.report = ConversionReport(tuple(conversion.layers))  # type: ignore[assignment]
        if example is None:
            return converted
        try:
            got = list(_tensors(target.run(converted, *_own(example))))
        except AttributeError as error:
            name = conversion.names.get(id(error.obj))
            if name is None or name in read:
                raise
            read[name] = error.name or "attributes"
            copied = target.take(_copied(module).eval().requires_grad_(False))
            continue
        difference = _difference(expected, got)
        if difference > target.tolerance:
            raise UserError(
                f"the converted network differs from the dense one by {difference:.1e} of its largest value for the"
                f" example input; expected at most {target.tolerance:.0e}: it may draw random numbers, or depend on more"
                f" than its layers' results{target.doubt}"
            )
        return converted
