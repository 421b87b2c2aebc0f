"""Hold which weights of a network are alive."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from mirl_sparse.architectures.promptir import PromptIR, unused_weights
from mirl_sparse.errors import UserError


class MaskError(UserError):
    """Report a mask that fits no network, or a density or a time that cannot be reached."""


def prunable_names(network: nn.Module, gains: bool = False) -> list[str]:
    """Return the names of the parameters that pruning may remove weights of.

    These are the weights of convolutions and linear layers, but for layers that are never called. Prompts and
    temperatures are not among them.

    Args:
        network: The network.
        gains: True takes every parameter whose name ends with "weight", the gains of norms and layers that
            are never called too, as MIR-L's code does.
    """
    left_out: Collection[str] = ()
    if isinstance(network, PromptIR) and not gains:
        left_out = unused_weights(network.config)
    elif not gains:
        left_out = _weights_of_other_layers(network)
    return [
        name
        for name, p in network.named_parameters()
        if name.endswith("weight") and (gains or p.ndim > 1) and name not in left_out
    ]


def _weights_of_other_layers(network: nn.Module) -> set[str]:
    """Return the names of weights that are not those of convolutions, linear layers and attentions."""
    return {
        f"{name}.{weight}" if name else weight
        for name, m in network.named_modules()
        if not isinstance(m, (_ConvNd, nn.Linear, nn.MultiheadAttention))
        for weight, _ in m.named_parameters(recurse=False)
    }


@dataclass(frozen=True)
class Mask:
    """Hold one boolean tensor per prunable parameter.

    Attributes:
        alive: Booleans by the parameter's name, in its shape; True where the weight is alive.
    """

    alive: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        for name, keep in self.alive.items():
            if keep.dtype != torch.bool:
                raise MaskError(f"mask of {name} is {keep.dtype}; expected torch.bool")

    @classmethod
    def full(cls, network: nn.Module, gains: bool = False) -> Mask:
        """Return the mask that keeps every prunable weight; ``gains`` as in `prunable_names`."""
        names = prunable_names(network, gains)
        return cls({n: torch.ones_like(network.get_parameter(n), dtype=torch.bool) for n in names})

    @classmethod
    def of(cls, network: nn.Module, gains: bool = False) -> Mask:
        """Return the mask of a pruned network: a weight is alive unless it is zero."""
        full = cls.full(network, gains)
        return cls({n: keep & (network.get_parameter(n) != 0) for n, keep in full.alive.items()})

    def check(self, network: nn.Module) -> None:
        """Raise MaskError unless the mask has exactly the network's prunable parameters, in their shapes."""
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
        """Return whether gains of norms may be pruned too, as MIR-L does."""
        return any(keep.ndim == 1 for keep in self.alive.values())

    def to(self, device: torch.device) -> Mask:
        """Return the same mask on a device."""
        return Mask({name: keep.to(device) for name, keep in self.alive.items()})

    def distance(self, other: Mask) -> float:
        """Return the share of prunable weights that only one of two masks keeps, 0 to 1."""
        return sum(int((keep != other.alive[n]).sum()) for n, keep in self.alive.items()) / self.total

    @property
    def nnz(self) -> int:
        """Return how many weights are alive."""
        return sum(int(keep.sum()) for keep in self.alive.values())

    @property
    def total(self) -> int:
        """Return how many prunable weights there are."""
        return sum(keep.numel() for keep in self.alive.values())

    @property
    def density(self) -> float:
        """Return alive / all of the prunable weights, 0 to 1."""
        return self.nnz / self.total

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Set the pruned weights of the network to zero."""
        for name, p in network.named_parameters():
            if name in self.alive:
                p.masked_fill_(~self.alive[name].to(p.device), 0)

    def apply_to_gradients(self, network: nn.Module) -> None:
        """Set the gradients of pruned weights to zero.

        Do so before the norm of the gradients is clipped: a q or k channel that is exactly zero has a
        gradient of 1e12 through its L2 norm.
        """
        for name, p in network.named_parameters():
            if name in self.alive and p.grad is not None:
                p.grad.masked_fill_(~self.alive[name], 0)


def matching_names(names: Collection[str], patterns: tuple[str, ...], setting: str) -> set[str]:
    """Return the names that match one of the patterns.

    Args:
        names: Names of prunable parameters.
        patterns: Shell wildcards.
        setting: The setting that holds the patterns, for the message.

    Raises:
        MaskError: A pattern matches no name.
    """
    for pattern in patterns:
        if not any(fnmatch(n, pattern) for n in names):
            raise MaskError(f"{setting} {pattern!r} matches no prunable weight, such as {next(iter(names))}")
    return {n for n in names if any(fnmatch(n, pattern) for pattern in patterns)}


def exempt_names(mask: Mask, patterns: tuple[str, ...]) -> set[str]:
    """Return the names of the mask that pruning leaves alone; MaskError where a pattern matches none."""
    return matching_names(mask.alive, patterns, "pruning.exempt")
