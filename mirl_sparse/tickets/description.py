"""Describe a network layer by layer: what is not zero, what that costs, and how the C++ kernels run it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.mdta import PackedMDTA
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.prompt import PackedPrompt
from mirl_sparse.architectures.promptir.network import PromptBlock, PromptIR, TransformerBlock
from mirl_sparse.architectures.promptir.topology import Kind, Layer, Part, layers, unused_weights

SIDE = 256  # of the square image that multiply-adds are counted for


@dataclass(frozen=True)
class LayerReport:
    """Say what one layer holds, what it costs for a 256x256 image, and how it runs.

    Attributes:
        name: Name of the weight.
        shape: Shape of the weight.
        nonzero: Weights that are not zero.
        total: All weights.
        macs: Multiply-adds by weights that are not zero.
        macs_dense: Multiply-adds by all weights.
        dead_rows: Output channels whose weights are all zero.
        implementation: How the C++ kernels run the layer: the fused op that it is part of, and whether its
            packed matrix is multiplied as sparse rows, dense, or dense in part.
    """

    name: str
    shape: tuple[int, ...]
    nonzero: int
    total: int
    macs: int
    macs_dense: int
    dead_rows: int
    implementation: str

    @property
    def density(self) -> float:
        """Return nonzero / all of the weights."""
        return self.nonzero / self.total


@dataclass(frozen=True)
class Report:
    """Say what a network holds and costs.

    Attributes:
        layers: Every convolution and linear layer that the forward pass uses; pruning may thin these out.
        parameters: Parameters that are not zero, of all that the forward pass uses.
        parameters_dense: Number of these parameters.
        removed: Weights of dead channels that were set to zero before.
        source: What the file was that the network was read from, and which of its weights; may be empty.
    """

    layers: tuple[LayerReport, ...]
    parameters: int
    parameters_dense: int
    removed: int = 0
    source: str = ""

    @property
    def statistics(self) -> dict[str, float]:
        """Return sums over the layers, as a ticket stores them.

        ``weights`` of ``weights_dense`` prunable weights are not zero, which is ``density``; ``macs_256`` of
        ``macs_256_dense`` multiply-adds remain for a 256x256 image, which is ``mac_density``.
        """
        nonzero, total = sum(x.nonzero for x in self.layers), sum(x.total for x in self.layers)
        macs, dense = sum(x.macs for x in self.layers), sum(x.macs_dense for x in self.layers)
        return {
            "weights": nonzero,
            "weights_dense": total,
            "density": nonzero / total,
            "macs_256": macs,
            "macs_256_dense": dense,
            "mac_density": macs / dense,
            "parameters": self.parameters,
            "parameters_dense": self.parameters_dense,
            "dead_weights_removed": self.removed,
        }


@torch.no_grad()
def describe(network: PromptIR, removed: int = 0) -> Report:
    """Return the report on a network as it stands.

    Args:
        network: The network; its zeros are its mask, and its weights may lie on any device.
        removed: Weights that `remove_dead_channels` has set to zero.
    """
    packed = dict(_packed(network))
    rows = tuple(
        _describe(layer, _weight(network, layer), packed.get(layer.name), network.config.unshuffle)
        for layer in layers(network.config)
        if layer.stage.kind is not Kind.UNUSED
    )
    unused = unused_weights(network.config)
    parameters = [p for name, p in network.named_parameters() if name not in unused]
    nonzero = sum(int(p.count_nonzero()) for p in parameters)
    return Report(rows, nonzero, sum(p.numel() for p in parameters), removed)


def _describe(layer: Layer, weight: Tensor, packed: Tensor | None, unshuffle: int) -> LayerReport:
    pixels = 1 if layer.part is Part.PROMPT_WEIGHTS else (SIDE >> layer.stage.level) ** 2
    nonzero = int(weight.count_nonzero())
    return LayerReport(
        name=layer.weight,
        shape=tuple(weight.shape),
        nonzero=nonzero,
        total=weight.numel(),
        macs=nonzero * pixels,
        macs_dense=weight.numel() * pixels,
        dead_rows=int((weight.flatten(1) == 0).all(1).sum()),
        implementation=_implementation(layer, packed, unshuffle),
    )


def _weight(network: PromptIR, layer: Layer) -> Tensor:
    weight = network.get_submodule(layer.name).weight
    assert isinstance(weight, Tensor)
    return weight


def _packed(network: PromptIR) -> Iterator[tuple[str, Tensor]]:
    """Yield the matrices that the C++ kernels multiply by, as their ops pack them, by name of the layer."""
    for name, module in network.named_modules():
        if isinstance(module, TransformerBlock):
            gain, offset, qkv, taps, temperature, out = _on_cpu(*module.mdta_weights)
            mdta = PackedMDTA(gain, offset, qkv, taps, temperature, out)
            gain, offset, project_in, taps, out = _on_cpu(*module.gdfn_weights)
            gdfn = PackedGDFN(gain, offset, project_in, taps, out)
            yield f"{name}.attn.qkv", mdta.qkv
            yield f"{name}.attn.project_out", mdta.project_out
            yield f"{name}.ffn.project_in", gdfn.project_in
            yield f"{name}.ffn.project_out", gdfn.project_out
        elif isinstance(module, PromptBlock):
            yield f"{name}.conv3x3", PackedPrompt(*_on_cpu(*module.weights)).conv3x3
    for layer in layers(network.config):
        if layer.stage.kind is Kind.UNUSED:
            continue
        if layer.stage.kind is Kind.EMBED:
            u = network.config.unshuffle
            (weight,) = _on_cpu(network.patch_embed.strided_weight)
            yield layer.name, PackedConv(weight, stride=(u, u), padding=(u, u, u, u)).packed
        elif layer.part in (Part.CONV, Part.POINTWISE):
            (weight,) = _on_cpu(_weight(network, layer))
            op = PackedConv if layer.part is Part.CONV else PackedPointwise
            yield layer.name, op(weight).packed


def _on_cpu(*weights: Tensor) -> Iterator[Tensor]:
    return (weight.detach().to("cpu", torch.float32) for weight in weights)


_TEXTS = {
    Part.CONV: "{form} 3x3",
    Part.POINTWISE: "{form} 1x1",
    Part.QKV: "fused MDTA: layer norm and {form} 1x1 to q, k and v",
    Part.QKV_TAPS: "fused MDTA: surviving taps of the depthwise 3x3 of q, k and v",
    Part.ATTENTION_OUT: "fused MDTA: {form} 1x1 project_out, alone or composed with the attention",
    Part.GATE_IN: "fused GDFN: layer norm and {form} 1x1 to the halves of the gate",
    Part.GATE_TAPS: "fused GDFN: surviving taps of the depthwise 3x3 of the halves of the gate",
    Part.GATE_OUT: "fused GDFN: {form} 1x1 project_out",
    Part.PROMPT_WEIGHTS: "fused prompt: dense linear layer, once per image",
    Part.PROMPT_CONV: "fused prompt: {form} 3x3 of the mixed prompts",
}
_STORES = {
    Kind.DOWN: ", its store unshuffles pixels",
    Kind.UP: ", its store shuffles pixels",
    Kind.OUTPUT: ", its store adds the image",
}
_UNSHUFFLED = {  # of a network whose pixels are unshuffled before the first convolution
    Kind.EMBED: " of unshuffled pixels, run as {kernel}x{kernel} with stride {unshuffle}",
    Kind.OUTPUT: ", its store shuffles pixels and adds the image",
}


def _implementation(layer: Layer, packed: Tensor | None, unshuffle: int) -> str:
    form = "" if packed is None else _form(packed)
    text = _TEXTS[layer.part].format(form=form)
    if layer.part is not Part.CONV:
        return text
    kinds = _STORES if unshuffle == 1 else _STORES | _UNSHUFFLED
    return text + kinds.get(layer.stage.kind, "").format(kernel=3 * unshuffle, unshuffle=unshuffle)


def _form(packed: Tensor) -> str:
    whole, chunks = cpu.whole_chunks(packed)
    return "dense" if whole == chunks else "partly dense" if whole else "sparse"
