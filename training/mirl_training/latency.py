"""The latency criterion: a round keeps the weights that are worth their time, up to a budget of seconds.

What a mask costs is what the converter's cost model predicts for restoring SIZE x SIZE pixels on this machine. Keeping the
most of sum(w^2 * fan_in), the weights' magnitudes in units of their initial deviation, within a budget of time is a
knapsack problem; taking weights in the order of value per second solves it but for the last one (Dantzig, 1957).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mirl_kernels import _cpu
from mirl_sparse.cost import CostModel
from mirl_sparse.network import PromptIR
from mirl_sparse.to_ticket import describe
from mirl_training.masks import Mask, MaskError, exempted, keep_largest

SIZE = 256


def seconds(network: PromptIR, mask: Mask, model: CostModel) -> float:
    """Predicted seconds for one SIZE x SIZE image by the weights that the mask keeps, whatever their values."""
    pruned = PromptIR(network.config)
    with torch.no_grad():
        for name, keep in mask.alive.items():
            pruned.get_parameter(name).copy_(keep)
    return model.network(pruned, SIZE, SIZE)


def prices(network: PromptIR, model: CostModel) -> dict[str, float]:
    """Seconds that one weight of each prunable tensor adds, as an entry of a sparse row or as a tap; 0 for those that work
    once per image, or never."""
    found = {}
    for layer in describe(network).layers:
        side = round((layer.macs_dense / layer.total) ** 0.5)
        vectors, groups = _cpu.groups(side, side)
        entry = model.prices["entry"] * vectors + model.prices["entry of a group"] * groups
        tap = model.prices["tap"] * vectors
        found[layer.name] = 0.0 if side == 1 else tap if layer.name.endswith("dwconv.weight") else entry
    return found


def prune_to_latency(
    network: PromptIR, mask: Mask, budget: float, model: CostModel, exempt: tuple[str, ...] = ()
) -> Mask:
    """A mask nested in the given one, of the largest |w| * sqrt(fan_in / price): as many as ``budget`` seconds allow. Layers
    that match an ``exempt`` pattern keep what they have, and so do weights without a price. MaskError where these alone
    take longer."""
    mask.check(network)
    spared = exempted(mask, exempt)
    cost = prices(network, model)
    free = {n for n in mask.alive if n not in spared and not cost.get(n)}
    ranked = [n for n in mask.alive if n not in spared | free]
    worth = {n: _worth(network.get_parameter(n), cost[n]) for n in ranked}
    scores, alive = (torch.cat([t[n].flatten() for n in ranked]) for t in (worth, mask.alive))

    def keeping(count: int) -> Mask:
        pieces = keep_largest(scores, alive, count).split([worth[n].numel() for n in ranked])
        kept = {n: piece.view_as(mask.alive[n]).clone() for n, piece in zip(ranked, pieces, strict=True)}
        return Mask({**mask.alive, **kept})

    least = seconds(network, keeping(1), model)
    if least > budget:
        raise MaskError(
            f"a budget of {budget * 1e3:.1f} ms for {SIZE}x{SIZE} pixels cannot be reached: without the weights that may be"
            f" pruned the network takes {least * 1e3:.1f} ms; ask for less speed-up, or exempt fewer layers"
        )
    low, high = 1, int(alive.sum())
    while low < high:
        middle = (low + high + 1) // 2
        if seconds(network, keeping(middle), model) <= budget:
            low = middle
        else:
            high = middle - 1
    return keeping(low)


def _worth(weight: Tensor, price: float) -> Tensor:
    fan_in = weight[0].numel()
    return weight.detach().abs() * (fan_in / price) ** 0.5
