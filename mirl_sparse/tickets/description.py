"""Describe a network layer by layer: what is left of it and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from mirl_kernels.core.cpu import DENSE
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.architectures.promptir.topology import Kind, stage_of


@dataclass(frozen=True)
class Layer:
    """What one layer holds and costs, at 256x256: MACs are multiply-adds."""

    name: str
    shape: tuple[int, ...]
    kept: int
    total: int
    macs: int
    macs_dense: int
    dead: int
    implementation: str

    @property
    def density(self) -> float:
        return self.kept / self.total


@dataclass(frozen=True)
class Report:
    """Every prunable layer of a network that the forward pass uses, how many of all its parameters are not
    zero, how many there are, and how many dead weights were removed."""

    layers: tuple[Layer, ...]
    parameters: int
    parameters_dense: int
    removed: int = 0

    @property
    def statistics(self) -> dict[str, float]:
        """Sums over the layers: prunable weights kept and all, their ratio, the same of multiply-adds and of
        all parameters."""
        kept, total = sum(x.kept for x in self.layers), sum(x.total for x in self.layers)
        macs, dense = sum(x.macs for x in self.layers), sum(x.macs_dense for x in self.layers)
        return {"weights": kept, "weights_dense": total, "density": kept / total, "macs_256": macs,
                "macs_256_dense": dense, "mac_density": macs / dense, "parameters": self.parameters,
                "parameters_dense": self.parameters_dense, "dead_weights_removed": self.removed}  # fmt: skip


_WHY = {
    "attn": "fused MDTA: norm, sparse qkv, taps and Gram matrix in strips",
    "ffn": "fused GDFN: norm, sparse 1x1, taps, gate in strips",
    "prompt": "fused prompt: mixture, resize, sparse 3x3",
    "conv": "sparse k x k, (un)shuffle in its store",
    "pointwise": "sparse 1x1",
    "linear": "dense: a handful of multiply-adds per image",
}


def describe(network: PromptIR, removed: int = 0) -> Report:
    """The report on a network as it stands."""
    layers = []
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        stage = stage_of(network.config, name)
        if stage.kind is Kind.UNUSED:
            continue
        weight = module.weight.detach()
        pixels = 1 if isinstance(module, nn.Linear) else (256 >> stage.level) ** 2
        kind = next((k for k in ("attn", "ffn") if f".{k}." in name), None)
        if kind is None and isinstance(module, nn.Linear):
            kind = "linear"
        kind = kind or (
            "prompt" if name.startswith("prompt") else "pointwise" if weight.shape[-1] == 1 else "conv"
        )
        kept = int((weight != 0).sum())
        dead = int((weight.flatten(1) == 0).all(1).sum())
        runs_as = _WHY[kind].replace("sparse", "dense") if kept > DENSE * weight.numel() else _WHY[kind]
        layers.append(Layer(f"{name}.weight", tuple(weight.shape), kept, weight.numel(), kept * pixels,
                            weight.numel() * pixels, dead, runs_as))  # fmt: skip
    used = PromptIR.names(replace(network.config, unused_layers=False))
    parameters = [p for name, p in network.named_parameters() if name in used]
    nonzero = sum(int(p.count_nonzero()) for p in parameters)
    return Report(tuple(layers), nonzero, sum(p.numel() for p in parameters), removed)
