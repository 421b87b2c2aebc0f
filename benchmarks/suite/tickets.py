"""Write full-size tickets of random weights to measure speed with; no training is needed.

    python -m benchmarks.suite.tickets FOLDER

This writes ``layerwise10.safetensors`` and the others in `TICKETS`. Weights are uniform within 1.6 /
sqrt(fan_in). A layer-wise ticket has the same density in every layer. An uneven ticket applies one threshold
to |w| * fan_in^0.36 over all layers but the output layer. This empties the wide layers of low resolution and
leaves those where the time goes, as a global criterion does after training.
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


def _threshold(scores: list[Tensor], density: float) -> float:
    """Return the score above which a fraction ``density`` of all entries lies."""
    flat = torch.cat([s.flatten() for s in scores])
    dropped = round((1 - density) * flat.numel())
    return float(flat.kthvalue(dropped).values) if dropped else -1.0


@torch.no_grad()
def network(criterion: str, density: float, config: PromptIRConfig | None = None, seed: int = 0) -> PromptIR:
    """Return a PromptIR with random weights.

    Args:
        criterion: "layerwise" or "uneven".
        density: Fraction of the prunable weights that are not zero.
        config: Its configuration; the full size by default.
        seed: Of the weights.
    """
    g = torch.Generator().manual_seed(seed)
    promptir = PromptIR(config).eval()
    prunable = {}
    for name, p in promptir.named_parameters():
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
        threshold = _threshold(
            scores, 0.10 if group == ["output.weight"] and criterion == "uneven" else density
        )
        for name, score in zip(group, scores, strict=True):
            prunable[name][score <= threshold] = 0
    return promptir


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("expected one argument, the folder to write tickets to")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (criterion, density) in TICKETS.items():
        pruned = network(criterion, density)
        statistics = describe(pruned, remove_dead_channels(pruned)).statistics
        write_ticket(folder / f"{name}.safetensors", pruned, statistics)
        densities = f"density {statistics['density']:.2%}, MAC density {statistics['mac_density']:.2%}"
        print(f"{name}: {densities}, without dead channels")


if __name__ == "__main__":
    main()
