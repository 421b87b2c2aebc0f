"""Prune by magnitude: the criteria that choose which weights a mask keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mirl_training.pruning.mask import Mask, MaskError, exempt_names
from mirl_training.pruning.settings import Criterion


def keep_largest(scores: Tensor, alive: Tensor, count: int) -> Tensor:
    """Return a mask of the largest alive scores; ties go to the lower index.

    Args:
        scores: (N,), none below 0.
        alive: (N,) of booleans.
        count: Number of weights that are kept, at most the number alive.

    Returns:
        (N,) of booleans.

    Examples:
        >>> scores = torch.tensor([3.0, 9.0, 5.0, 5.0])
        >>> keep_largest(scores, torch.tensor([True, False, True, True]), 2).tolist()
        [False, False, True, True]
    """
    order = torch.where(alive, scores, -1.0).argsort(descending=True, stable=True)
    largest = torch.zeros_like(alive)
    largest[order[:count]] = True
    return largest


def prune_to_density(
    network: nn.Module, mask: Mask, density: float, criterion: str, exempt: tuple[str, ...] = ()
) -> Mask:
    """Return a mask, nested in another one, that keeps the largest magnitudes.

    "global" ranks all layers together. "lamp" does so too, by magnitudes relative to the larger ones of their
    layer (Lee et al., ICLR 2021). "layerwise" ranks each layer by itself at one density; a layer that has
    less keeps all. "random" draws as many of each layer as "layerwise" keeps, the same ones of the same
    values.

    Args:
        network: The network whose weights are ranked.
        mask: The weights that may be kept.
        density: Density of all prunable weights, exact to one weight per group that is ranked together.
        criterion: A `Criterion` but "latency".
        exempt: Layers whose name matches one of these patterns (shell wildcards) keep what they have; the
            others pay for it.

    Raises:
        MaskError: Mask and network do not fit, the density cannot be reached, or the criterion is unknown.
    """
    mask.check(network)
    spared = exempt_names(mask, exempt)
    ranked = [n for n in mask.alive if n not in spared]
    target = round(mask.total * density) - sum(int(mask.alive[n].sum()) for n in spared)
    available = sum(int(mask.alive[n].sum()) for n in ranked)
    if not 0 < target <= available:
        raise MaskError(
            f"density {density:.4g} leaves {target} weights for the layers that are not exempt;"
            f" expected 1 to {available}: exempt fewer layers or stop earlier"
        )
    scores = {n: network.get_parameter(n).detach().abs().flatten() for n in ranked}
    alive = {n: mask.alive[n].flatten() for n in ranked}
    if criterion == Criterion.LAMP:
        scores = {n: _lamp(scores[n], alive[n]) for n in ranked}
    if criterion in (Criterion.GLOBAL, Criterion.LAMP):
        pruned = _keep_among_all(scores, alive, target)
    elif criterion in (Criterion.LAYERWISE, Criterion.RANDOM):
        if criterion == Criterion.RANDOM:
            scores = {n: _lots(values) for n, values in scores.items()}
        counts = _share_out(alive, target)
        pruned = {n: keep_largest(scores[n], alive[n], counts[n]) for n in ranked}
    else:
        raise MaskError(
            f"criterion {str(criterion)!r} is unknown; expected global, layerwise, lamp or random"
        )
    return Mask(dict(mask.alive) | {n: keep.view_as(mask.alive[n]) for n, keep in pruned.items()})


def _keep_among_all(
    scores: Mapping[str, Tensor], alive: Mapping[str, Tensor], count: int
) -> dict[str, Tensor]:
    """Return the masks (N,) of the ``count`` largest scores of all layers together."""
    flat = keep_largest(torch.cat(list(scores.values())), torch.cat(list(alive.values())), count)
    pieces = flat.split([len(values) for values in scores.values()])
    return {n: piece.clone() for n, piece in zip(scores, pieces, strict=True)}


def _share_out(alive: Mapping[str, Tensor], count: int) -> dict[str, int]:
    """Return how many weights each layer keeps, at one density where the layers have enough."""
    remaining, free, counts = count, list(alive), dict[str, int]()
    while free:  # layers that have less than their share leave the rest of it to the others
        share = remaining / sum(alive[n].numel() for n in free)
        short = [n for n in free if int(alive[n].sum()) <= share * alive[n].numel()] or free
        for n in short:
            counts[n] = min(max(1, round(share * alive[n].numel())), int(alive[n].sum()))
            remaining -= counts[n]
        free = [n for n in free if n not in counts]
    return counts


def _lots(magnitude: Tensor) -> Tensor:
    """Return a random score of each weight, seeded by all their values."""
    values = magnitude.float().cpu()
    seed = int(values.view(torch.int32).sum(dtype=torch.int64))
    return torch.rand(len(values), generator=torch.Generator().manual_seed(seed)).to(magnitude.device)


def _lamp(magnitude: Tensor, alive: Tensor) -> Tensor:
    """Return each weight's square over those of its layer's alive weights that are not smaller (eq. 3)."""
    squares = torch.where(alive, magnitude, 0.0).double().square()
    order = squares.argsort(stable=True)
    sums = squares[order].flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(squares)
    scores[order] = squares[order] / sums.clamp(min=torch.finfo(torch.float64).tiny)
    return scores


def prune_as_mirl(network: nn.Module, mask: Mask, rate: float, criterion: str) -> Mask:
    """Return a mask, nested in another one, as MIR-L's code makes it.

    Weights go whose magnitude is below the percentile ``100 * rate`` of those that are not zero: of all
    layers ("global"), or of each ("layerwise"), where the output layer is pruned at half the rate. How many
    go is exact only up to interpolation and ties.

    Args:
        network: The network whose weights are ranked; pruned ones are zero.
        mask: The weights that may be kept.
        rate: Share of the weights that go, 0 to 1.
        criterion: "global" or "layerwise".

    Raises:
        MaskError: Mask and network do not fit.
    """
    mask.check(network)
    magnitude = {n: network.get_parameter(n).detach().abs() for n in mask.alive}
    if criterion == Criterion.GLOBAL:
        everywhere = _percentile([m.flatten() for m in magnitude.values()], rate)
        thresholds = dict.fromkeys(mask.alive, everywhere)
    else:
        thresholds = {
            n: _percentile([m], rate / 2 if "output" in n else rate) for n, m in magnitude.items() if m.any()
        }
    return Mask({n: keep & (magnitude[n] >= thresholds.get(n, 0.0)) for n, keep in mask.alive.items()})


def _percentile(values: Sequence[Tensor], rate: float) -> float:
    """Return the percentile ``100 * rate`` of the values that are not zero."""
    joined = torch.cat(list(values)) if len(values) > 1 else values[0]
    return float(np.percentile(joined[joined != 0].numpy(), 100 * rate))
