"""Masks: which weights of a network are still alive, and the criteria that choose them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import numpy as np
import torch
from torch import Tensor, nn

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.errors import UserError


class MaskError(UserError):
    """A mask that fits no network, or a density that cannot be reached."""


def prunable_names(network: nn.Module, gains: bool = False) -> list[str]:
    """The weights that pruning may remove: those of convolutions and linear layers, but for layers that are never called; with
    ``gains`` all that are called weight, as MIR-L's code has it; not the prompts or the temperatures."""
    unused: Collection[str] = ()
    if isinstance(network, PromptIR) and not gains:
        every, used = (PromptIR.names(replace(network.config, unused_layers=kept)) for kept in (True, False))
        unused = every - used
    return [
        name
        for name, p in network.named_parameters()
        if name.endswith("weight") and (gains or p.ndim > 1) and name not in unused
    ]


@dataclass(frozen=True)
class Mask:
    """One boolean tensor per prunable weight, True where the weight is alive."""

    alive: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, keep in self.alive.items():
            if keep.dtype != torch.bool:
                raise MaskError(f"mask of {name} is {keep.dtype}; expected torch.bool")

    @classmethod
    def full(cls, network: nn.Module, gains: bool = False) -> Mask:
        """The mask that keeps every prunable weight, of norms too with ``gains``."""
        names = prunable_names(network, gains)
        return cls({n: torch.ones_like(network.get_parameter(n), dtype=torch.bool) for n in names})

    @classmethod
    def of(cls, network: nn.Module, gains: bool = False) -> Mask:
        """The mask that a pruned network's zeros are."""
        return cls(
            {n: keep & (network.get_parameter(n) != 0) for n, keep in cls.full(network, gains).alive.items()}
        )

    def check(self, network: nn.Module) -> None:
        """Raise MaskError unless the mask names every prunable weight of the network in its shape, and no other but gains."""
        shapes = {n: network.get_parameter(n).shape for n in prunable_names(network, self.has_gains)}
        if odd := sorted(shapes.keys() ^ self.alive.keys()):
            raise MaskError(f"mask and network differ in {len(odd)} tensors, the first of them {odd[0]}")
        for name, shape in shapes.items():
            if self.alive[name].shape != shape:
                raise MaskError(
                    f"mask of {name} has shape {tuple(self.alive[name].shape)}; expected {tuple(shape)}"
                )

    @property
    def has_gains(self) -> bool:
        """Whether gains of norms may be pruned too, as MIR-L does."""
        return any(keep.ndim == 1 for keep in self.alive.values())

    def to(self, device: torch.device) -> Mask:
        """The same mask on a device."""
        return Mask({name: keep.to(device) for name, keep in self.alive.items()})

    def distance(self, other: Mask) -> float:
        """The share of prunable weights that only one of two masks keeps."""
        return sum(int((keep != other.alive[n]).sum()) for n, keep in self.alive.items()) / self.total

    @property
    def kept(self) -> int:
        """How many weights are alive."""
        return sum(int(keep.sum()) for keep in self.alive.values())

    @property
    def total(self) -> int:
        """How many prunable weights there are."""
        return sum(keep.numel() for keep in self.alive.values())

    @property
    def density(self) -> float:
        """Alive / all of the prunable weights."""
        return self.kept / self.total

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Set the pruned weights of the network to zero."""
        for name, p in network.named_parameters():
            if name in self.alive:
                p.masked_fill_(~self.alive[name].to(p.device), 0)

    def apply_to_gradients(self, network: nn.Module) -> None:
        """Set the gradients of pruned weights to zero. Do so before their norm is clipped: a q or k
        channel that is exactly zero has a gradient of 1e12 through its L2 norm."""
        for name, p in network.named_parameters():
            if name in self.alive and p.grad is not None:
                p.grad.masked_fill_(~self.alive[name], 0)


def keep_largest(scores: Tensor, alive: Tensor, count: int) -> Tensor:
    """The ``count`` largest of the alive entries of a flat tensor of scores from 0; ties go to the lower index."""
    order = torch.where(alive, scores, -1.0).argsort(descending=True, stable=True)
    kept = torch.zeros_like(alive)
    kept[order[:count]] = True
    return kept


def matching(names: Collection[str], patterns: tuple[str, ...], setting: str) -> set[str]:
    """Which names of prunable weights match one of the patterns (shell wildcards). MaskError, which names the ``setting`` they are
    from, for a pattern that matches none."""
    for pattern in patterns:
        if not any(fnmatch(n, pattern) for n in names):
            raise MaskError(f"{setting} {pattern!r} matches no prunable weight, such as {next(iter(names))}")
    return {n for n in names if any(fnmatch(n, pattern) for pattern in patterns)}


def exempted(mask: Mask, patterns: tuple[str, ...]) -> set[str]:
    """The names of the mask that pruning leaves alone."""
    return matching(mask.alive, patterns, "pruning.exempt")


@torch.no_grad()
def regrow(network: PromptIR, source: PromptIR, patterns: tuple[str, ...]) -> None:
    """Give the network, where it has zeros in prunable weights that match a pattern, the values of ``source``, a network of the
    same shape."""
    if network.config != source.config:
        raise MaskError("regrow.source is a network of another shape than start; expected the same")
    for name in matching(prunable_names(network), patterns, "regrow.layers"):
        p = network.get_parameter(name)
        p.copy_(torch.where(p == 0, source.get_parameter(name), p))


def _lamp(magnitude: Tensor, alive: Tensor) -> Tensor:
    """Layer-adaptive magnitude (Lee et al., ICLR 2021, eq. 3): a weight's square over those of all alive weights of its
    layer that are not smaller."""
    squares = torch.where(alive, magnitude, 0.0).double().square()
    order = squares.argsort(stable=True)
    sums = squares[order].flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / sums.clamp(min=torch.finfo(torch.float64).tiny)
    return scores


def prune_as_mirl(network: PromptIR, mask: Mask, rate: float, criterion: str) -> Mask:
    """A mask nested in the given one as MIR-L's code makes it: without the weights whose magnitude is below the percentile
    ``100 * rate`` of those that are not zero, of all layers (``global``) or of each (``layerwise``), where the output layer
    is pruned at half the rate. How many go is exact only up to interpolation and ties."""
    mask.check(network)
    magnitude = {n: network.get_parameter(n).detach().abs() for n in mask.alive}

    def threshold(values: Tensor, rate: float) -> float:
        return float(np.percentile(values[values != 0].numpy(), 100 * rate))

    if criterion == "global":
        everywhere = threshold(torch.cat([m.flatten() for m in magnitude.values()]), rate)
        least = dict.fromkeys(mask.alive, everywhere)
    else:
        least = {
            n: threshold(m, rate / 2 if "output" in n else rate) for n, m in magnitude.items() if m.any()
        }
    return Mask({n: keep & (magnitude[n] >= least.get(n, 0.0)) for n, keep in mask.alive.items()})


def prune(
    network: PromptIR, mask: Mask, density: float, criterion: str, exempt: tuple[str, ...] = ()
) -> Mask:
    """A mask nested in the given one that keeps the largest magnitudes: ``density`` of all prunable
    weights, exact to one weight per ranked group.

    ``global`` ranks all layers together, ``lamp`` as well, by magnitudes relative to the layer's larger ones (`_lamp`), and
    ``layerwise`` each by itself at one density, or all that it has where that is less. Layers that match an ``exempt``
    pattern keep what they have; the others pay for it.
    """
    mask.check(network)
    parameters = dict(network.named_parameters())
    spared = exempted(mask, exempt)
    ranked = [n for n in mask.alive if n not in spared]
    wanted = round(mask.total * density) - sum(int(mask.alive[n].sum()) for n in spared)
    available = sum(int(mask.alive[n].sum()) for n in ranked)
    if not 0 < wanted <= available:
        raise MaskError(
            f"density {density:.4g} leaves {wanted} weights for the layers that are not exempt;"
            f" expected 1 to {available}: exempt fewer layers or stop earlier"
        )
    magnitude = {n: parameters[n].detach().abs().flatten() for n in ranked}
    alive = dict(mask.alive)
    if criterion in ("global", "lamp"):
        if criterion == "lamp":
            magnitude = {n: _lamp(magnitude[n], mask.alive[n].flatten()) for n in ranked}
        flat = keep_largest(
            torch.cat([magnitude[n] for n in ranked]),
            torch.cat([mask.alive[n].flatten() for n in ranked]),
            wanted,
        )
        pieces = flat.split([magnitude[n].numel() for n in ranked])
        alive |= {n: piece.view_as(mask.alive[n]).clone() for n, piece in zip(ranked, pieces, strict=True)}
    elif criterion == "layerwise":
        left, free, counts = wanted, list(ranked), {}
        while free:  # layers that have less than their share give the rest to the others
            share = left / sum(magnitude[n].numel() for n in free)
            short = [n for n in free if int(mask.alive[n].sum()) <= share * magnitude[n].numel()] or free
            for n in short:
                counts[n] = min(max(1, round(share * magnitude[n].numel())), int(mask.alive[n].sum()))
                left -= counts[n]
            free = [n for n in free if n not in counts]
        for n in ranked:
            alive[n] = keep_largest(magnitude[n], mask.alive[n].flatten(), counts[n]).view_as(mask.alive[n])
    else:
        raise MaskError(f"criterion {criterion!r} is unknown; expected global, layerwise or lamp")
    return Mask(alive)
