"""Training on the fused kernels: the same network, parameters and gradients, computed by surviving weights alone."""

from __future__ import annotations

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.conv.backward import TrainableConv
from mirl_kernels.ops.gdfn.backward import TrainableGDFN
from mirl_kernels.ops.mdta.backward import TrainableMDTA
from mirl_kernels.ops.prompt.backward import TrainablePrompt
from mirl_sparse.architectures.promptir.network import (
    PatchEmbed,
    Pointwise,
    PromptBlock,
    PromptIR,
    Resample,
    TransformerBlock,
)
from mirl_sparse.errors import UserError
from mirl_training.pruning.masks import Mask

ENGINES = "auto", "fused", "reference"
_OPS = "mdta", "gdfn", "conv", "prompt"
_CONV = {PatchEmbed: ".proj", Resample: ".body.0", Pointwise: "", PromptIR: "output"}  # where their weight is


def choose_engine(name: str, device: str = "cpu", precision: str = "float32") -> tuple[str, str]:
    """Which of "fused" and "reference" one of `ENGINES` means here, and a line that says why. "auto" is the fused kernels
    where they were built and can be used: in float32 on the CPU. UserError for another name, or where "fused" cannot run."""
    if name not in ENGINES:
        raise UserError(f"engine is {name!r}; expected one of {', '.join(ENGINES)}")
    if (device, precision) != ("cpu", "float32") and name == "fused":
        raise UserError(
            f"engine 'fused' trains float32 on a CPU; training.precision is {precision}, the device {device}"
        )
    if name == "reference" or (device, precision) != ("cpu", "float32"):
        return (
            "reference",
            f"engine: reference (PyTorch's autograd, every weight computed), {precision} on {device}",
        )
    try:
        cpu.library()
    except BackendError as error:
        if name == "fused":
            raise UserError(f"engine 'fused' cannot run here: {error}") from None
        return "reference", f"engine: reference (PyTorch's autograd), since {error}"
    threads = torch.get_num_threads()
    return "fused", (
        f"engine: fused C++ kernels ({cpu.isa()}, {threads} thread{'s' * (threads > 1)}), by surviving weights alone;"
        " --engine reference trains in plain PyTorch"
    )


def fuse(network: PromptIR, mask: Mask) -> None:
    """Let the network compute by the weights that the mask keeps, float32 on the CPU. Gradients of all others are
    exactly zero; parameters and their names stay as they are. To be called again when the mask changes."""
    mask.check(network)
    unfuse(network)

    def alive(name: str) -> Tensor:
        return mask.alive[f"{name}.weight".removeprefix(".")]

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
        elif type(m) in _CONV and "." not in name:  # those of the blocks are part of them
            layer = f"{name}{_CONV[type(m)]}"
            if f"{layer}.weight" in mask.alive:  # others are never called
                m.__dict__["conv"] = TrainableConv(alive(layer))


def unfuse(network: PromptIR) -> None:
    """Back to plain PyTorch."""
    for m in network.modules():
        for name in _OPS:
            m.__dict__.pop(name, None)
