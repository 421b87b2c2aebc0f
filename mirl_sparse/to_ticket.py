"""From a masked checkpoint to a ticket: dead channels out, statistics in, verified before it is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from mirl_kernels._cpu import DENSE
from mirl_sparse.checkpoint import read_checkpoint
from mirl_sparse.errors import UserError
from mirl_sparse.network import PromptIR
from mirl_sparse.restorer import SparseRestorer
from mirl_sparse.ticket import is_ticket, pack, read_ticket, remove_dead_channels, unpack, write_ticket

TOLERANCE = 1e-4  # of the sparse result against the masked dense network, values in [0, 1]


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


def _halvings(name: str) -> int:
    """At which resolution a layer runs: its side is that of the image over 2^halvings."""
    stage = name.split(".")[0]
    fixed = {"patch_embed": 0, "output": 0, "refinement": 0, "latent": 3, "down1_2": 0, "down2_3": 1, "down3_4": 2,
             "up4_3": 3, "up3_2": 2, "up2_1": 1}  # fmt: skip
    if stage in fixed:
        return fixed[stage]
    level = int(stage[-1])
    return level if stage.startswith(("noise", "prompt", "reduce_noise")) else level - 1


def describe(network: PromptIR, removed: int = 0) -> Report:
    """The report on a network as it stands."""
    layers = []
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)) or name.startswith(("chnl_reduce", "reduce_noise_channel")):
            continue
        weight = module.weight.detach()
        pixels = 1 if isinstance(module, nn.Linear) else (256 >> _halvings(name)) ** 2
        kind = next((k for k in ("attn", "ffn") if f".{k}." in name), None)
        if kind is None and isinstance(module, nn.Linear):
            kind = "linear"
        kind = kind or ("prompt" if name.startswith("prompt") else "pointwise" if weight.shape[-1] == 1 else "conv")
        kept = int((weight != 0).sum())
        dead = int((weight.flatten(1) == 0).all(1).sum())
        runs_as = _WHY[kind].replace("sparse", "dense") if kept > DENSE * weight.numel() else _WHY[kind]
        layers.append(Layer(f"{name}.weight", tuple(weight.shape), kept, weight.numel(), kept * pixels,
                            weight.numel() * pixels, dead, runs_as))  # fmt: skip
    used = PromptIR.names(replace(network.config, unused_layers=False))
    parameters = [p for name, p in network.named_parameters() if name in used]
    nonzero = sum(int(p.count_nonzero()) for p in parameters)
    return Report(tuple(layers), nonzero, sum(p.numel() for p in parameters), removed)


def load(path: Path) -> PromptIR:
    """The network of a ticket or a checkpoint, whichever the file is."""
    return read_ticket(path)[0] if is_ticket(path) else read_checkpoint(path).network()


def to_ticket(source: Path, target: Path) -> Report:
    """Write the ticket of a checkpoint. What the packed ticket restores is compared with the masked dense
    network first; a difference above 1e-4 is a UserError and nothing is written."""
    dense = load(source)
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: is the checkpoint itself; give another -o")
    network = PromptIR(dense.config)
    network.load_state_dict(dense.state_dict())
    report = describe(network, remove_dead_channels(network))
    image = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        packed, _ = unpack(pack(network, {}))
        difference = (SparseRestorer(packed)(image) - dense(image)).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"{source}: the sparse result differs from the dense one by {difference:.1e}; expected at most"
            f" {TOLERANCE:.0e}, so nothing was written"
        )
    statistics = report.statistics | {"max_difference": difference}
    write_ticket(target, network, statistics | {"layers": [asdict(layer) for layer in report.layers]})
    return report
