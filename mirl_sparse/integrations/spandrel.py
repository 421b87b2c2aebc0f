"""Let programs that are built on spandrel load PromptIR checkpoints and all tickets.

After `register`, ``spandrel.ModelLoader().load_from_file("my.ticket.safetensors")`` gives a descriptor.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mirl_sparse.architectures.image_network import import_torchvision
from mirl_sparse.architectures.promptir.detection import SIGNATURE
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.choices import Weights
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.tickets.checkpoint import Content, promptir_in
from mirl_sparse.tickets.file import network_of_tensors
from mirl_sparse.tickets.network_file import unpack_tensors
from mirl_sparse.tickets.packing import MASK, SHAPE

import_torchvision()  # before spandrel, which needs it

from spandrel import (  # noqa: E402
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelDescriptor,
    SizeRequirements,
    StateDict,
)

_PROMPT = "prompt1.prompt_param"


class PromptIRArch(Architecture[PromptIR]):
    """Load a PromptIR: a published or MIR-L checkpoint, dense or pruned, or a ticket.

    The descriptor's model is the dense network. On the CPU in float32 the descriptor runs it by the sparse
    kernels, as `SparseRestorer` does; on other devices and in other types the model itself runs.
    """

    def __init__(self) -> None:
        super().__init__(id="PromptIR", detect=_is_promptir)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[PromptIR]:
        """Return the descriptor of a PromptIR's state dict.

        Args:
            state_dict: Weights below any name, as `mirl_sparse.tickets.read_checkpoint` takes them, or the
                tensors of a ticket.

        Raises:
            UserError: They are not those of a whole PromptIR.
        """
        if any(name.endswith(MASK) for name in state_dict):
            network = network_of_tensors(state_dict)
        else:
            network = promptir_in(Content(state_dict, {}, "state dict"), Weights.AUTO, Path()).network()
        config = network.config
        restorer = SparseRestorer(network)

        def call(model: PromptIR, image: Tensor) -> Tensor:
            is_plain = image.device.type == "cpu" and image.dtype == torch.float32
            restored: Tensor = restorer(image) if is_plain and model is network else model(image)
            return restored

        return ImageModelDescriptor(
            network,
            network.state_dict(),
            architecture=self,
            purpose="Restoration",
            tags=[f"{config.dim}dim"],
            supports_half=False,
            supports_bfloat16=True,
            scale=1,
            input_channels=3,
            output_channels=3,
            size_requirements=SizeRequirements(multiple_of=config.multiple),
            call_fn=call,
        )


class TicketArch(Architecture[nn.Module]):
    """Load a ticket of another architecture, as the dense network that the registry makes of it.

    `mirl_sparse.sparsify` makes the descriptor's model fast.

    Args:
        registry: The architectures among which the ticket's one is.
    """

    def __init__(self, registry: ArchRegistry) -> None:
        super().__init__(id="mirl-sparse ticket", detect=_is_network_ticket)
        self._registry = registry

    def load(self, state_dict: StateDict) -> ModelDescriptor:
        """Return the descriptor of a ticket's network.

        Raises:
            UserError: The ticket is damaged.
            spandrel.UnsupportedModelError: The registry does not know the network.
        """
        return self._registry.load(unpack_tensors(state_dict))


def register(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Add PromptIR and tickets to a registry of spandrel; a second call does nothing.

    Args:
        registry: By default the one that every ``spandrel.ModelLoader`` uses. What else is added to it, such
            as ``spandrel_extra_arches``, may be added before or after.
    """
    known = tuple(support.architecture.id for support in registry)
    # Restormer's detector takes a PromptIR for one of its own.
    before = tuple({*known, "Restormer"} - {"PromptIR", "mirl-sparse ticket"})
    for architecture in (PromptIRArch(), TicketArch(registry)):
        support = ArchSupport.from_architecture(architecture, before)
        registry.add(support, ignore_duplicates=True)


def _is_promptir(state: StateDict) -> bool:
    names = [name.removesuffix(MASK) for name in state]
    return any(n.endswith(SIGNATURE) for n in names) and any(n.endswith(_PROMPT) for n in names)


def _is_network_ticket(state: StateDict) -> bool:
    return any(name.endswith(SHAPE) and name.removesuffix(SHAPE) + MASK in state for name in state)
