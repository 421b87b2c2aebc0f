"""Prune by the clock: keep the weights that are worth their time, up to a budget of seconds.

The time of a mask is what the cost model predicts for an image on this machine: seconds for each weight, and
seconds for each hidden channel that has any. A `Clock` tells them. The worth of a weight is
`Trainer.importance`, the loss that its removal is expected to add: magnitudes do not compare between layers
(benchmarks/studies/study.md). To keep the most worth within a budget is a knapsack problem (as in HALP, Shen
et al., NeurIPS 2022). A Lagrange multiplier solves it (Everett, Operations Research 1963): a second counts as
so much loss, what is not worth its own seconds goes, and the multiplier rises until the rest fits the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Quantity
from mirl_sparse.architectures.promptir import PromptIR, TransformerBlock
from mirl_sparse.performance.cost import CostModel
from mirl_sparse.tickets import describe
from mirl_training.pruning.mask import Mask, MaskError, exempt_names

SIZE = 256  # pixels each way of the image whose time counts
_STEP, _HALVINGS = 16, 14  # the multiplier is searched by this factor, then between two such steps


@dataclass(frozen=True)
class Channels:
    """Hold what the hidden channels of an attention or a feed-forward cost beside their weights.

    A channel is computed, and costs its seconds, while every part has a weight left.

    Attributes:
        seconds: (channels,) float64.
        parts: Functions by the parameter's name; each views the parameter as (halves, channels, weights).
            Where there are two halves, both are needed.
    """

    seconds: Tensor
    parts: Mapping[str, Callable[[Tensor], Tensor]]


class Clock(Protocol):
    """Tell what masks of a network cost on this machine."""

    @property
    def network(self) -> nn.Module:
        """Return the network; its shapes count, not its values."""
        ...

    def seconds(self, mask: Mask) -> float:
        """Return the predicted seconds for one image by the weights that a mask keeps."""
        ...

    def seconds_per_weight(self) -> Mapping[str, float]:
        """Return the seconds that one weight of each prunable parameter adds, by name.

        A weight is an entry of a sparse row, or a tap. It adds 0 where it has no price: it is never pruned.
        """
        ...

    def channels(self) -> Sequence[Channels]:
        """Return the hidden channels that cost something beside their weights."""
        ...


class PromptIRClock:
    """Tell what masks of a PromptIR cost, for one image of SIZE x SIZE pixels; see `Clock`.

    Args:
        network: The network; its config counts, not its values.
        model: Prices of the machine.
    """

    def __init__(self, network: PromptIR, model: CostModel) -> None:
        self._network, self._model = network, model

    @property
    def network(self) -> PromptIR:
        """Return the network."""
        return self._network

    def seconds(self, mask: Mask) -> float:
        """Return the predicted seconds for one image by the weights that a mask keeps."""
        pruned = PromptIR(self._network.config)
        with torch.no_grad():
            for name, keep in mask.alive.items():
                pruned.get_parameter(name).copy_(keep)
        return self._model.network(pruned, SIZE, SIZE)

    def seconds_per_weight(self) -> dict[str, float]:
        """Return the seconds that one weight adds; 0 where the layer works once per image, or never."""
        result = {}
        for layer in describe(self._network).layers:
            pixels = layer.macs_dense // layer.total
            each = per_weight(self._model, *_vectors(pixels), layer.name.endswith("dwconv.weight"))
            result[layer.name] = 0.0 if pixels == 1 else each
        return result

    def channels(self) -> list[Channels]:
        """Return those of all blocks: rows of q, k and v, and pairs of the gated feed-forward."""
        model = self._model
        pixels = {layer.name: layer.macs_dense // layer.total for layer in describe(self._network).layers}
        result = []
        for name, block in self._network.named_modules():
            if isinstance(block, TransformerBlock):
                vectors, groups = _vectors(pixels[f"{name}.attn.qkv.weight"])
                row = per_row(model, vectors, groups)
                result.append(_attention_channels(f"{name}.attn", block, row, vectors, model))
                result.append(_feed_forward_channels(f"{name}.ffn", block, row, vectors, model))
        return result


def per_weight(model: CostModel, vectors: int, groups: int, is_tap: bool) -> float:
    """Return the seconds that a weight takes for so many vectors of pixels in so many groups."""
    if is_tap:
        return model.prices[Quantity.TAP] * vectors
    return model.prices[Quantity.ENTRY] * vectors + model.prices[Quantity.ENTRY_OF_GROUP] * groups


def per_row(model: CostModel, vectors: int, groups: int) -> float:
    """Return the seconds that a row of a sparse matrix takes beside its weights."""
    return model.prices[Quantity.ROW] * vectors + model.prices[Quantity.ROW_OF_GROUP] * groups


def _vectors(pixels: int) -> tuple[int, int]:
    side = round(pixels**0.5)
    return cpu.pixel_groups(side, side)


def _attention_channels(
    name: str, block: TransformerBlock, row: float, vectors: int, model: CostModel
) -> Channels:
    price, width = model.prices, block.attn.project_out.weight.shape[0]
    # A channel of q meets all of k in its head, and one of k all of q; half of that is charged to either.
    gram = price[Quantity.GRAM] * width / block.attn.temperature.shape[0] / 2
    qk = row + (price[Quantity.LIVE_QK] + gram) * vectors
    v = row + (price[Quantity.LIVE_V] + price[Quantity.DENSE] * width / 2) * vectors
    return Channels(
        torch.tensor([qk, qk, v], dtype=torch.float64).repeat_interleave(width),
        {f"{name}.{layer}.weight": lambda t: t.flatten(1)[None] for layer in ("qkv", "qkv_dwconv")},
    )


def _feed_forward_channels(
    name: str, block: TransformerBlock, row: float, vectors: int, model: CostModel
) -> Channels:
    pairs = block.ffn.project_out.weight.shape[1]

    def halves(t: Tensor) -> Tensor:
        return t.view(2, pairs, -1)

    return Channels(
        torch.full((pairs,), 2 * row + model.prices[Quantity.GATE] * vectors, dtype=torch.float64),
        {
            f"{name}.project_in.weight": halves,
            f"{name}.dwconv.weight": halves,
            f"{name}.project_out.weight": lambda t: t.flatten(1).T[None],
        },
    )


class _Knapsack:
    """Choose what is worth its seconds, once a second counts as a given loss."""

    def __init__(
        self,
        clock: Clock,
        importance: Mapping[str, Tensor],
        mask: Mask,
        spared: set[str],
    ) -> None:
        self._clock, self._mask = clock, mask
        self._cost = clock.seconds_per_weight()
        self._ranked = [n for n in mask.alive if n not in spared and self._cost.get(n)]
        self._worth = {n: importance[n].double().masked_fill(~mask.alive[n], 0) for n in self._ranked}
        self._channels = clock.channels()

    @property
    def largest_multiplier(self) -> float:
        """Return the multiplier from which on no ranked weight is worth its seconds, whatever is rounded."""
        largest = max((float((self._worth[n] / self._cost[n]).max()) for n in self._ranked), default=0.0)
        return largest * (1 + 1e-9)

    def mask(self, multiplier: float) -> Mask:
        gain = {n: (self._worth[n] - multiplier * self._cost[n]).clamp(min=0) for n in self._ranked}
        alive = dict(self._mask.alive) | {n: gain[n] > 0 for n in self._ranked}
        for group in self._channels:
            gains = sum(view(gain[n]).sum((0, 2)) for n, view in group.parts.items() if n in gain)
            dead = gains <= multiplier * group.seconds
            for n, view in group.parts.items():
                dead = dead | ~view(alive[n]).any(2).all(0)
            for n, view in group.parts.items():
                if n in gain:
                    view(alive[n])[:, dead] = False
        return Mask(alive)

    def seconds(self, multiplier: float) -> float:
        return self._clock.seconds(self.mask(multiplier))


def prune_to_latency(
    clock: Clock,
    importance: Mapping[str, Tensor],
    mask: Mask,
    budget: float,
    exempt: tuple[str, ...] = (),
) -> Mask:
    """Return a mask, nested in another one, that keeps the most importance within a budget of seconds.

    Args:
        clock: The clock of the network.
        importance: Importance of each weight, by the parameter's name and in its shape, none below 0.
        mask: The weights that may be kept.
        budget: Seconds for one image, as the clock counts them.
        exempt: Layers whose name matches one of these patterns (shell wildcards) keep what they have, and so
            do weights without a price.

    Raises:
        MaskError: Mask and network do not fit, or exempt layers and weights without a price alone take
            longer.
    """
    mask.check(clock.network)
    knapsack = _Knapsack(clock, importance, mask, exempt_names(mask, exempt))
    if knapsack.seconds(0) <= budget:
        return knapsack.mask(0)
    high = knapsack.largest_multiplier
    if (least := knapsack.seconds(high)) > budget:
        raise MaskError(
            f"a budget of {budget * 1e3:.1f} ms an image cannot be reached: without the weights that may be"
            f" pruned the network takes {least * 1e3:.1f} ms; ask for less speed-up, or"
            " exempt fewer layers"
        )
    low = high / _STEP
    while knapsack.seconds(low) <= budget:
        low, high = low / _STEP, low
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if knapsack.seconds(middle) <= budget else (middle, high)
    return knapsack.mask(high)
