"""Train on the fused kernels: the same network and gradients, computed by surviving weights alone."""

from __future__ import annotations

from torch import Tensor

from mirl_kernels.ops.conv.backward import TrainableConv
from mirl_kernels.ops.gdfn.backward import TrainableGDFN
from mirl_kernels.ops.mdta.backward import TrainableMDTA
from mirl_kernels.ops.prompt.backward import TrainablePrompt
from mirl_sparse.architectures.promptir import (
    Kind,
    Part,
    PromptBlock,
    PromptIR,
    TransformerBlock,
    layers,
)
from mirl_training.pruning.mask import Mask

_OPS = "mdta", "gdfn", "conv", "prompt"


def fuse(network: PromptIR, mask: Mask) -> None:
    """Let a network compute on the fused kernels, by the weights that a mask keeps.

    Gradients of all other weights are exactly zero. Parameters and their names stay as they are. Call it
    again when the mask changes.

    Args:
        network: The network, float32, on the CPU; it is changed in place.
        mask: The mask of the network's prunable weights.

    Raises:
        MaskError: Mask and network do not fit.
    """
    mask.check(network)
    unfuse(network)

    def alive(name: str) -> Tensor:
        return mask.alive[f"{name}.weight"]

    for name, m in network.named_modules():
        if isinstance(m, TransformerBlock):
            attn, ffn, heads = f"{name}.attn", f"{name}.ffn", m.attn.temperature.shape[0]
            m.__dict__["mdta"] = TrainableMDTA(
                alive(f"{attn}.qkv"), alive(f"{attn}.qkv_dwconv"), alive(f"{attn}.project_out"), heads
            )
            m.__dict__["gdfn"] = TrainableGDFN(
                alive(f"{ffn}.project_in"), alive(f"{ffn}.dwconv"), alive(f"{ffn}.project_out")
            )
        elif isinstance(m, PromptBlock):
            m.__dict__["prompt"] = TrainablePrompt(alive(f"{name}.linear_layer"), alive(f"{name}.conv3x3"))
    for layer in layers(network.config):
        if (
            layer.part in (Part.CONV, Part.POINTWISE) and layer.weight in mask.alive
        ):  # others are never called
            stage = layer.stage
            m = network if stage.kind is Kind.OUTPUT else network.get_submodule(stage.name)
            m.__dict__["conv"] = TrainableConv(alive(layer.name))


def unfuse(network: PromptIR) -> None:
    """Let a network compute in plain PyTorch again."""
    for m in network.modules():
        for name in _OPS:
            m.__dict__.pop(name, None)
