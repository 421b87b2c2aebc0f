"""Define the interface of a target: where a network runs, and the sparse forms of its layers and blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Refusal:
    """Say why a module has no sparse form.

    Attributes:
        reason: The reason, as the report prints it.
    """

    reason: str


@dataclass(frozen=True)
class LayerForm:
    """Hold the sparse form of a layer.

    Attributes:
        module: The module that takes the layer's place.
        ops: The packed ops in that module.
        implementation: Name of the form in the report.
    """

    module: nn.Module
    ops: tuple[nn.Module, ...]
    implementation: str


class FusedPart(NamedTuple):
    """Describe a part of a fused block for the report.

    Attributes:
        name: Name of the part inside the block; empty for the block itself.
        implementation: Name of the op that runs the part.
        reason: What that op does in one pass.
    """

    name: str
    implementation: str
    reason: str


@dataclass(frozen=True)
class BlockKind:
    """Recognise and fuse blocks of one kind.

    Attributes:
        name: Name of the kind in the report, with its article.
        recognise: Function that returns the weights of a module of this kind, a `Refusal` for a module that
            only resembles one, and None for any other module. It runs nothing and packs nothing.
        fuse: Packs the weights that ``recognise`` returned into the fused op.
        arguments: Function that makes arguments of a call, the first of which is the only tensor, from these
            weights, for so many images of a height and width, or a little more where blocks need it.
        parts: Rows of the report for a fused block.
        dimensions: Dimensions of the tensor that blocks are called with.
        positional: Numbers of arguments that they may be called with.
    """

    name: str
    recognise: Callable[[nn.Module], Any]
    fuse: Callable[[Any], nn.Module]
    arguments: Callable[[Any, int, int, int], tuple[Any, ...]]
    parts: tuple[FusedPart, ...]
    dimensions: int = 4
    positional: tuple[int, ...] = (1,)


class CallShape(NamedTuple):
    """Count the calls of a module on inputs of one shape.

    Attributes:
        shape: Shape of the first tensor among the arguments.
        times: Number of calls.
    """

    shape: tuple[int, ...]
    times: int


def is_ordinary(x: Tensor, dtype: torch.dtype, device_type: str) -> bool:
    """Return whether a tensor is dense, not empty, of this type, and used outside of autocast.

    Args:
        x: The tensor.
        dtype: The type that it must have.
        device_type: The kind of device that it must be on, such as "cpu".
    """
    return (
        x.dtype == dtype
        and x.device.type == device_type
        and x.layout == torch.strided
        and x.numel() > 0
        and not torch.is_autocast_enabled(device_type)
    )


LayerForms = Mapping[type[nn.Module], Callable[[Any], LayerForm | Refusal]]


class SparsificationTarget(Protocol):
    """Describe where a sparsified network runs.

    Attributes:
        backend: Name of the backend of `SparseRestorer` for this target.
        precision: Name of the type of the activations.
        device: Device of the sparsified network.
        layers: For each type of layer that has a sparse form here, the function that makes it.
        blocks: Kinds of blocks that are fused here.
        tolerance: Largest difference of a swapped module from the dense one, relative to the largest result,
            or to 1 where that is less.
        doubt: Further reason for larger differences, added to the error message; may be empty.
        launch_errors: Errors that say that this device cannot run a kernel, which only a launch tells.
    """

    backend: str
    precision: str
    device: torch.device
    layers: LayerForms
    blocks: Sequence[BlockKind]
    tolerance: float
    doubt: str
    launch_errors: tuple[type[Exception], ...]

    def prepare(self, value: Any) -> Any:
        """Return a network or an input as it is sparsified and compared.

        Args:
            value: A module, a tensor, or any other argument of the network, which is returned as it is.
        """
        ...

    def place(self, network: nn.Module) -> nn.Module:
        """Return the network, or a packed op, where it is to run."""
        ...

    def packable(self, module: nn.Module) -> nn.Module:
        """Return a placed module with its weights as the ops pack them: in float32 on the CPU.

        Args:
            module: The module, which stays as it is.
        """
        ...

    def takes(self, x: Tensor) -> bool:
        """Return whether the packed ops take a tensor of this type, layout and device, and not an empty one.

        Args:
            x: A tensor of floating-point numbers.
        """
        ...

    def run(self, module: nn.Module, *inputs: Any, **named: Any) -> Any:
        """Run a module on the target.

        Args:
            module: The module, which may be moved to the target.
            *inputs: Its arguments, as `prepare` returns them.
            **named: Its arguments by name.

        Returns:
            Its result, as `prepare` returns tensors.
        """
        ...

    def seconds(self, dense: nn.Module, form: LayerForm, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return the seconds that a layer's sparse form and the dense layer take.

        Args:
            dense: The layer.
            form: The sparse form of the layer.
            shape: Shape of the layer's input.
        """
        ...

    def block_pays(self, dense: nn.Module, fused: nn.Module, calls: Sequence[CallShape]) -> bool:
        """Return whether the fused form of a block is to be used.

        Args:
            dense: The block.
            fused: The fused form of the block.
            calls: The calls of the block for one input of the network.
        """
        ...
