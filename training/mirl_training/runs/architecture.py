"""Make, read, restore with and time the networks of a run, whatever their architecture is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mirl_sparse.architectures.image_network import ArchitectureError, ImageNetwork, new_network
from mirl_sparse.architectures.promptir import PromptIR, PromptIRConfig
from mirl_sparse.choices import BackendName
from mirl_sparse.performance.cost import CostModel
from mirl_sparse.runtime import SparseRestorer
from mirl_sparse.tickets import find_ticket, load_any_network
from mirl_training.pruning.latency import SIZE, Clock, PromptIRClock

UNLIMITED_MEMORY = (
    1 << 60
)  # bytes: images are restored untiled, whatever is free, for the same answers every time

Restore = Callable[[Tensor], Tensor]  # of (B, 3, H, W) in [0, 1]


class Architecture(Protocol):
    """Know the networks of a run: all have the same parameters, and differ in their values."""

    @property
    def network(self) -> nn.Module:
        """Return the network that this was made of, with the values that it came with."""
        ...

    @property
    def multiple(self) -> int:
        """Return the number that height and width of what it trains on are multiples of."""
        ...

    def check_patch(self, side: int) -> None:
        """Raise UserError unless the network takes patches of SIDE x SIDE pixels."""
        ...

    def empty(self) -> nn.Module:
        """Return another network, in eval mode; its values mean nothing."""
        ...

    def metadata(self) -> dict[str, str]:
        """Return what a file of weights says about the network, beside its tensors."""
        ...

    def follow(self, network: nn.Module, backend: BackendName) -> Restore:
        """Return what restores images by a network, by new weights too once it has these.

        Args:
            network: A network of this architecture, in eval mode.
            backend: The backend, where the architecture can change weights on it.
        """
        ...

    def restorer(self, network: nn.Module, backend: BackendName) -> Restore:
        """Return what restores images by the weights that a network has now, as fast as a backend can."""
        ...

    def clock(self, network: nn.Module, model: CostModel) -> Clock:
        """Return what tells the time of masks, for one image of SIZE x SIZE pixels, by a cost model."""
        ...


class _PromptIRs:
    """Know PromptIRs of one config; see `Architecture`."""

    def __init__(self, network: PromptIR) -> None:
        self.network: nn.Module = network
        self._config = network.config

    @property
    def multiple(self) -> int:
        return self._config.multiple

    def check_patch(self, side: int) -> None:
        if side % self.multiple:
            raise ArchitectureError(
                f"a patch size is {side}, and this network takes multiples of {self.multiple}; change"
                " training.patch_size or progressive"
            )

    def empty(self) -> PromptIR:
        return PromptIR(self._config).eval()

    def metadata(self) -> dict[str, str]:
        return {"config": json.dumps(self._config.to_dict())}

    def follow(self, network: nn.Module, backend: BackendName) -> Restore:
        assert isinstance(network, PromptIR)
        return SparseRestorer(network, backend, UNLIMITED_MEMORY)

    def restorer(self, network: nn.Module, backend: BackendName) -> Restore:
        return self.follow(network, backend)

    def clock(self, network: nn.Module, model: CostModel) -> Clock:
        assert isinstance(network, PromptIR)
        return PromptIRClock(network, model)


class _ImageNetworks:
    """Know networks that spandrel builds; see `Architecture`. What trains is spandrel's module itself."""

    def __init__(self, network: ImageNetwork) -> None:
        kind, channels = network.architecture, (network.input_channels, network.output_channels)
        if network.scale != 1 or channels != (3, 3) or network.noise_level is not None:
            raise ArchitectureError(
                f"{kind} here takes {channels[0]} channels, gives {channels[1]} and enlarges"
                f" {network.scale}x{', and takes a noise level' * (network.noise_level is not None)};"
                " a run trains networks that take an RGB image alone and give one of the same size"
                " (mirl_training.prune trains any nn.Module)"
            )
        self.network, self._image_network = network.model, network
        self._empty = deepcopy(network.model).eval()  # training changes the other one

    @property
    def multiple(self) -> int:
        return self._image_network.size.multiple

    def check_patch(self, side: int) -> None:
        if (taken := self._image_network.size.padded(side, side)) != (side, side):
            raise ArchitectureError(
                f"a patch size is {side}, and {self._image_network.architecture} takes {taken[0]} next;"
                " change training.patch_size or progressive"
            )

    def empty(self) -> nn.Module:
        return deepcopy(self._empty)

    def metadata(self) -> dict[str, str]:
        return {"architecture": self._image_network.architecture}

    def follow(self, network: nn.Module, backend: BackendName) -> Restore:
        return self.restorer(network, BackendName.REFERENCE)

    def restorer(self, network: nn.Module, backend: BackendName) -> Restore:
        from mirl_sparse.sparsification.network_restorer import NetworkRestorer

        return NetworkRestorer(self._image_network.around(network), backend, UNLIMITED_MEMORY)

    def clock(self, network: nn.Module, model: CostModel) -> Clock:
        from mirl_sparse.sparsification.cpu import CPU_BLOCKS
        from mirl_sparse.sparsification.layers import CPU_LAYERS
        from mirl_training.pruning.layer_clock import LayerClock

        image = torch.zeros(1, 3, *self._image_network.size.padded(SIZE, SIZE))
        return LayerClock(network, (image,), model, CPU_LAYERS, CPU_BLOCKS)


def architecture_of(network: PromptIR | ImageNetwork) -> Architecture:
    """Return the architecture of a network, with that network.

    Raises:
        ArchitectureError: It does not restore RGB images in their size.
    """
    return _PromptIRs(network) if isinstance(network, PromptIR) else _ImageNetworks(network)


def new_architecture(name: str | None, settings: PromptIRConfig | Mapping[str, Any]) -> Architecture:
    """Return the architecture of new networks, with a new network.

    Args:
        name: None for PromptIR, or as for `new_network`.
        settings: PromptIR's config, or the arguments of the network's class.

    Raises:
        ArchitectureError: There is no such network, or it does not restore RGB images in their size.
    """
    if isinstance(settings, PromptIRConfig):
        return architecture_of(PromptIR(settings))
    assert name is not None
    return architecture_of(new_network(name, settings))


def read_architecture(source: str | Path) -> Architecture:
    """Return the architecture of a network in a file, with that network.

    Args:
        source: A checkpoint of any known architecture, weights of a run, or whatever names a ticket.

    Raises:
        UserError: There is no such file, it holds no network of a known architecture, or one that does not
            restore RGB images in their size.
    """
    return architecture_of(load_any_network(find_ticket(source)))
