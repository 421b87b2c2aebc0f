"""The latency criterion: a round keeps the weights that are worth their time, up to a budget of seconds.

What a mask costs is what the converter's cost model predicts for restoring SIZE x SIZE pixels on this machine: so much for
each weight, and so much for each hidden channel that has any. What a weight is worth is `Trainer.importance`, the loss that
its removal is expected to add: magnitudes do not compare between layers (benchmarks/study.md). Keeping the most of it within
a budget is a knapsack problem (as in HALP, Shen et al., NeurIPS 2022), solved by putting a price on the second (Everett,
Operations Research 1963): what is not worth its own seconds goes, and the price rises until the rest fits the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_sparse.architectures.promptir.network import PromptIR, TransformerBlock
from mirl_sparse.performance.cost import CostModel
from mirl_sparse.tickets.description import describe
from mirl_training.pruning.masks import Mask, MaskError, exempted

SIZE = 256
_STEP, _HALVINGS = 16, 14  # the price of a second is searched by this factor, then between two such steps


def seconds(network: PromptIR, mask: Mask, model: CostModel) -> float:
    """Predicted seconds for one SIZE x SIZE image by the weights that the mask keeps, whatever their values."""
    pruned = PromptIR(network.config)
    with torch.no_grad():
        for name, keep in mask.alive.items():
            pruned.get_parameter(name).copy_(keep)
    return model.network(pruned, SIZE, SIZE)


def seconds_per_weight(network: PromptIR, model: CostModel) -> dict[str, float]:
    """Seconds that one weight of each prunable tensor adds, as an entry of a sparse row or as a tap; 0 for those that work
    once per image, or never."""
    found = {}
    for layer in describe(network).layers:
        vectors, groups = _vectors(layer.macs_dense // layer.total)
        entry = model.prices["entry"] * vectors + model.prices["entry of a group"] * groups
        tap = model.prices["tap"] * vectors
        found[layer.name] = 0.0 if vectors == 1 else tap if layer.name.endswith("dwconv.weight") else entry
    return found


def _vectors(pixels: int) -> tuple[int, int]:
    side = round(pixels**0.5)
    return cpu.groups(side, side)


@dataclass(frozen=True)
class Channels:
    """The hidden channels of an attention or a feed-forward: each costs ``seconds`` (channels,) beside its weights as long as it is
    computed, which it is while every one of ``parts`` has a weight left. A part views a tensor, given by its name, as (halves,
    channels, weights); where there are two halves, both are needed."""

    seconds: Tensor
    parts: Mapping[str, Callable[[Tensor], Tensor]]


def channels(network: PromptIR, model: CostModel) -> list[Channels]:
    """The hidden channels of all blocks: rows of q, k and v, and pairs of the gated feed-forward."""
    pixels = {layer.name: layer.macs_dense // layer.total for layer in describe(network).layers}
    price, found = model.prices, []
    for name, block in network.named_modules():
        if not isinstance(block, TransformerBlock):
            continue
        attn, ffn = f"{name}.attn", f"{name}.ffn"
        vectors, groups = _vectors(pixels[f"{attn}.qkv.weight"])
        row = price["row"] * vectors + price["row of a group"] * groups
        width = block.attn.project_out.weight.shape[0]
        # A channel of q meets all of k in its head, and one of k all of q; half of that is charged to either.
        met = price["gram"] * width / block.attn.temperature.shape[0] / 2
        qk, v = (
            row + (price["live qk"] + met) * vectors,
            row + (price["live v"] + price["dense"] * width / 2) * vectors,
        )
        found.append(
            Channels(
                torch.tensor([qk, qk, v], dtype=torch.float64).repeat_interleave(width),
                {f"{attn}.{layer}.weight": lambda t: t.flatten(1)[None] for layer in ("qkv", "qkv_dwconv")},
            )
        )
        pairs = block.ffn.project_out.weight.shape[1]

        def halves(t: Tensor, pairs: int = pairs) -> Tensor:
            return t.view(2, pairs, -1)

        found.append(
            Channels(
                torch.full((pairs,), 2 * row + price["gate"] * vectors, dtype=torch.float64),
                {
                    f"{ffn}.project_in.weight": halves,
                    f"{ffn}.dwconv.weight": halves,
                    f"{ffn}.project_out.weight": lambda t: t.flatten(1).T[None],
                },
            )
        )
    return found


def prune_to_latency(
    network: PromptIR,
    importance: Mapping[str, Tensor],
    mask: Mask,
    budget: float,
    model: CostModel,
    exempt: tuple[str, ...] = (),
) -> Mask:
    """A mask nested in the given one that keeps the most ``importance`` (>= 0, per weight of each tensor) in ``budget`` seconds.
    Layers that match an ``exempt`` pattern keep what they have, and so do weights without a price. MaskError where these alone
    take longer."""
    mask.check(network)
    spared, cost = exempted(mask, exempt), seconds_per_weight(network, model)
    ranked = [n for n in mask.alive if n not in spared and cost.get(n)]
    worth = {n: importance[n].double().masked_fill(~mask.alive[n], 0) for n in ranked}
    hidden = channels(network, model)

    def at(price: float) -> Mask:
        """What is worth its seconds, if one is worth ``price``."""
        gain = {n: (worth[n] - price * cost[n]).clamp(min=0) for n in ranked}
        alive = dict(mask.alive) | {n: gain[n] > 0 for n in ranked}
        for group in hidden:
            gains = sum(view(gain[n]).sum((0, 2)) for n, view in group.parts.items() if n in gain)
            dead = gains <= price * group.seconds
            for n, view in group.parts.items():
                dead = dead | ~view(alive[n]).any(2).all(0)
            for n, view in group.parts.items():
                if n in gain:
                    view(alive[n])[:, dead] = False
        return Mask(alive)

    def taken(price: float) -> float:
        return seconds(network, at(price), model)

    if taken(0) <= budget:
        return at(0)
    high = max((float((worth[n] / cost[n]).max()) for n in ranked), default=0.0)
    if (least := taken(high)) > budget:
        raise MaskError(
            f"a budget of {budget * 1e3:.1f} ms for {SIZE}x{SIZE} pixels cannot be reached: without the weights that may be"
            f" pruned the network takes {least * 1e3:.1f} ms; ask for less speed-up, or exempt fewer layers"
        )
    low = high / _STEP
    while taken(low) <= budget:
        low, high = low / _STEP, low
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if taken(middle) <= budget else (middle, high)
    return at(high)
