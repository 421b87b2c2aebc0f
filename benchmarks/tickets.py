"""Full-size tickets of random weights to measure speed with, no training needed:

    python benchmarks/tickets.py FOLDER

writes ``layerwise10.safetensors`` and the others in `TICKETS`. Weights are uniform within 1.6 / sqrt(fan_in).
A layer-wise ticket keeps the same share of every layer; an uneven one applies one threshold to
|w| * fan_in^0.36 over all layers but the output's, which empties the wide layers of low resolution and leaves
those where the time goes, as a global criterion does after training.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.tickets import describe, remove_dead_channels, write_ticket

TICKETS = {
    "layerwise10": ("layerwise", 0.107),
    "layerwise3": ("layerwise", 0.0352),
    "uneven10": ("uneven", 0.10),
    "uneven3": ("uneven", 0.0352),
    "dense": ("layerwise", 1.0),
}


def _keep(scores: list[Tensor], density: float) -> float:
    """The score above which a share ``density`` of all entries lies."""
    flat = torch.cat([s.flatten() for s in scores])
    dropped = round((1 - density) * flat.numel())
    return float(flat.kthvalue(dropped).values) if dropped else -1.0


@torch.no_grad()
def network(criterion: str, density: float, config: PromptIRConfig | None = None, seed: int = 0) -> PromptIR:
    """A PromptIR of random weights pruned to ``density`` of its prunable ones."""
    g = torch.Generator().manual_seed(seed)
    made = PromptIR(config).eval()
    prunable = {}
    for name, p in made.named_parameters():
        if name.endswith("prompt_param"):
            p.copy_(torch.rand(p.shape, generator=g))
        elif name.endswith(("body.weight", "body.bias", "temperature")):
            scale = 0.3 if name.endswith("temperature") else 0.1
            p.copy_((0 if name.endswith("bias") else 1) + scale * torch.randn(p.shape, generator=g))
        else:
            bound = 1.6 / (p[0].numel() if p.ndim > 1 else 1) ** 0.5
            p.copy_((2 * torch.rand(p.shape, generator=g) - 1) * bound)
            if p.ndim > 1:
                prunable[name] = p
    if criterion == "layerwise":
        groups = [[name] for name in prunable]
    else:
        groups = [[name for name in prunable if name != "output.weight"], ["output.weight"]]
    for group in groups:
        scores = [prunable[name].abs() * prunable[name][0].numel() ** 0.36 for name in group]
        threshold = _keep(scores, 0.10 if group == ["output.weight"] and criterion == "uneven" else density)
        for name, score in zip(group, scores, strict=True):
            prunable[name][score <= threshold] = 0
    return made


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("expected one argument, the folder to write tickets to")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (criterion, density) in TICKETS.items():
        made = network(criterion, density)
        report = describe(made, remove_dead_channels(made))
        write_ticket(folder / f"{name}.safetensors", made, report.statistics)
        s = report.statistics
        print(
            f"{name}: density {s['density']:.2%}, MAC density {s['mac_density']:.2%}, without dead channels"
        )


if __name__ == "__main__":
    main()
