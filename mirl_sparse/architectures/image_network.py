"""Build networks of other architectures than PromptIR from their weights alone, by the package spandrel.

spandrel recognises an architecture by the names of its weights, and infers the widths from their shapes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mirl_sparse.errors import FileContentError

if TYPE_CHECKING:
    from spandrel import ArchRegistry, ImageModelDescriptor

INSTALL = "run pip install '.[spandrel]' in the clone of mirl-sparse"
_WITH_NOISE_MAP = ("DRUNet", "DnCNN")  # these may take the level of the noise as one more channel
NOISE_LEVEL = 15.0  # standard deviation of 0-255, which spandrel takes too


class ArchitectureError(FileContentError):
    """Report weights of which no network can be built; the message is one line for the user."""


@dataclass(frozen=True)
class SizeRule:
    """Say which sizes of images a network takes.

    Attributes:
        minimum: Smallest height and width.
        multiple: Number that height and width are multiples of.
        square: Whether both must be equal.
    """

    minimum: int = 0
    multiple: int = 1
    square: bool = False

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the smallest size that the network takes and that holds an image.

        Examples:
            >>> SizeRule(minimum=16, multiple=8).padded(3, 41)
            (16, 48)
            >>> SizeRule(multiple=128, square=True).padded(100, 130)
            (256, 256)
        """
        sides = [-(-max(side, self.minimum, 1) // self.multiple) * self.multiple for side in (height, width)]
        return (max(sides), max(sides)) if self.square else (sides[0], sides[1])


@dataclass(frozen=True, eq=False)
class NetworkWeights:
    """Hold the weights of a network, and which architecture they are of.

    Attributes:
        architecture: Name of the architecture as spandrel has it, such as "NAFNet".
        state: Tensors by their published names, zeros included; floating-point ones are float32.
        source: One phrase that says what they were read from.
    """

    architecture: str
    state: dict[str, Tensor] = field(repr=False)
    source: str

    def network(self) -> ImageNetwork:
        """Return a new network with a copy of these weights, in eval mode.

        Raises:
            ArchitectureError: They are not those of such a network.
        """
        return ImageNetwork(self.architecture, self.state)


class ImageNetwork(nn.Module):
    """Hold a network that spandrel knows, as a module that takes images and gives images.

    Args:
        architecture: Name of the architecture as spandrel has it.
        state: The weights by their published names; they are copied.

    Attributes:
        architecture: Name of the architecture.
        model: spandrel's module.
        scale: How many times larger the result is than the image.
        input_channels: Channels of the image, without the map of a noise level.
        output_channels: Channels of the result.
        size: Which sizes of images the network takes.
        noise_level: Standard deviation of the noise to remove, of 0-255; None where the network takes none.

    Raises:
        ArchitectureError: spandrel cannot build a network of these weights, or it takes more than an image.
    """

    def __init__(self, architecture: str, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        descriptor = _descriptor(architecture, state)
        rule = descriptor.size_requirements
        self.architecture = architecture
        self.model: nn.Module = descriptor.model.eval().requires_grad_(False)
        self.scale = descriptor.scale
        self.input_channels, self.output_channels = descriptor.input_channels, descriptor.output_channels
        self.size = SizeRule(rule.minimum, rule.multiple_of, rule.square)
        self.noise_level = NOISE_LEVEL if self._takes_noise_level() else None
        self._call = _call_of(descriptor)
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():
                raise ArchitectureError(f"{name} holds NaN or infinite values; expected finite weights")

    def _takes_noise_level(self) -> bool:
        first = next((m for m in self.model.modules() if isinstance(m, nn.Conv2d)), None)
        return (
            self.architecture in _WITH_NOISE_MAP
            and first is not None
            and first.in_channels == self.input_channels + 1
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_call"}  # it may be a lambda

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._call = _call_of(_descriptor(self.architecture, self.model.state_dict()))

    def __deepcopy__(self, memo: dict[int, Any]) -> ImageNetwork:
        copied = memo[id(self)] = ImageNetwork.__new__(ImageNetwork)
        vars(copied).update(deepcopy(vars(self), memo))  # functions are not copied
        return copied

    def around(self, model: nn.Module) -> ImageNetwork:
        """Return a network like this one that holds another module of spandrel's, the module itself.

        Args:
            model: A module of the same class and parameters as `model`.
        """
        other = ImageNetwork.__new__(ImageNetwork)
        vars(other).update(vars(self))
        other._modules = {"model": model}
        return other

    def forward(self, image: Tensor) -> Tensor:
        """Restore an image.

        Args:
            image: (B, input_channels, H, W) in [0, 1], of a size that `size` allows.

        Returns:
            A tensor (B, output_channels, scale * H, scale * W), not clipped.
        """
        if self.noise_level is not None:
            noise = torch.full_like(image[:, :1], self.noise_level / 255)
            restored: Tensor = self.model(torch.cat([image, noise], 1))
            return restored
        return self._call(self.model, image.clone())  # some networks write to their input


def new_network(name: str, arguments: Mapping[str, Any]) -> ImageNetwork:
    """Return a network with new weights, to be trained.

    Args:
        name: Name of a network's class as spandrel has it, such as "NAFNet" or "RealPLKSR".
        arguments: Arguments of the class, such as ``{"width": 16, "enc_blk_nums": [1, 1]}``.

    Raises:
        ArchitectureError: spandrel is not installed, has no such class, the class does not take the
            arguments, or spandrel takes the weights for another network than the one that was built.
    """
    known = _network_classes()
    if name not in known:
        names = ", ".join(sorted(known))
        raise ArchitectureError(
            f"architecture is {name!r}; expected PromptIR or what {versions()} knows: {names}"
        )
    architecture, build = known[name]
    try:
        built = build(**arguments).eval()
    except Exception as error:  # of spandrel's code, for any arguments
        reason = " ".join(str(error).split())[:200]
        raise ArchitectureError(
            f"{name} does not take {dict(arguments)} ({type(error).__name__}: {reason})"
        ) from error
    state = built.state_dict()
    network = ImageNetwork(architecture, state)
    shape = (1, network.input_channels, *network.size.padded(32, 32))
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        is_same = detect(state) == architecture and _same_images(built, network.model, image)
    if not is_same:
        raise ArchitectureError(
            f"{name} of {dict(arguments)} cannot be built again from its weights, as tickets are:"
            f" {versions()} reads some arguments from shapes and takes defaults for others; change them"
        )
    return network


def _same_images(a: nn.Module, b: nn.Module, image: Tensor) -> bool:
    """Return whether two modules that take an image and give one give the same."""
    try:
        first, second = a(image.clone()), b(image.clone())
    except Exception as error:  # of spandrel's code
        raise ArchitectureError(
            f"{type(a).__name__} takes more than an image ({type(error).__name__}: {error})"
        ) from error
    return (
        isinstance(first, Tensor) and first.shape == second.shape and torch.allclose(first, second, atol=1e-5)
    )


@cache
def _network_classes() -> dict[str, tuple[str, Callable[..., nn.Module]]]:
    """Return the classes of networks by name, each with the name of its architecture."""
    classes: dict[str, tuple[str, Callable[..., nn.Module]]] = {}
    for support in registry().architectures("detection"):
        module = import_module(type(support.architecture).__module__)
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, nn.Module):
                classes[name] = support.architecture.id, value
    return classes


def is_available() -> bool:
    """Return whether spandrel is installed."""
    return find_spec("spandrel") is not None


def has_extra() -> bool:
    """Return whether spandrel_extra_arches is installed, which knows more architectures."""
    return find_spec("spandrel_extra_arches") is not None


def versions() -> str:
    """Return the versions of the installed packages that know architectures, for messages.

    Raises:
        ArchitectureError: spandrel is not installed.
    """
    _check_available()
    names = [name for name in ("spandrel", "spandrel_extra_arches") if find_spec(name)]
    return " and ".join(f"{name} {version(name)}" for name in names)


def detect(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the architecture that weights are of, or None if spandrel knows none.

    Args:
        state: Tensors by their published names.

    Raises:
        ArchitectureError: spandrel is not installed.
    """
    supports = registry().architectures("detection")
    return next((s.architecture.id for s in supports if s.detect(dict(state))), None)


@cache
def registry() -> ArchRegistry:
    """Return spandrel's architectures, with those of spandrel_extra_arches where that is installed.

    Raises:
        ArchitectureError: spandrel is not installed.
    """
    _check_available()
    import_torchvision()
    from spandrel import MAIN_REGISTRY, ArchRegistry

    known = ArchRegistry()
    known.add(*_others(MAIN_REGISTRY))
    if has_extra():
        from spandrel_extra_arches import EXTRA_REGISTRY

        known.add(*_others(EXTRA_REGISTRY), ignore_duplicates=True)
    return known


def _others(architectures: Iterable[Any]) -> list[Any]:
    """Return architectures without those that `mirl_sparse.integrations.spandrel` registers."""
    return [a for a in architectures if not type(a.architecture).__module__.startswith("mirl_sparse")]


def import_torchvision() -> None:
    """Import torchvision, which spandrel needs, also where its compiled operators cannot be loaded.

    PyPI's torchvision is built for CUDA. Beside a PyTorch without CUDA it cannot be imported, for want of two
    operators. spandrel calls neither, so it is enough to declare them.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for op in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        import torchvision  # noqa: F401


def _check_available() -> None:
    if not is_available():
        raise ArchitectureError(f"networks but PromptIR need the package spandrel: {INSTALL}")


def _descriptor(architecture: str, state: Mapping[str, Tensor]) -> ImageModelDescriptor[nn.Module]:
    known = registry()
    if architecture not in known:
        raise ArchitectureError(
            f"its architecture is {architecture!r}, which {versions()} does not know; install the version of"
            " spandrel or spandrel_extra_arches that does"
        )
    from spandrel import ImageModelDescriptor

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about what these networks call
            # A copy: some architectures rename tensors in what they load.
            descriptor = known[architecture].architecture.load(dict(state))
    except Exception as error:  # of spandrel's code, for any tensors that only look like an architecture's
        reason = " ".join(str(error).split())[:200]
        raise ArchitectureError(
            f"looks like {architecture}, but {versions()} cannot build it ({type(error).__name__}: {reason});"
            " build the network in Python and give it to mirl_sparse.sparsify"
        ) from error
    if not isinstance(descriptor, ImageModelDescriptor):
        raise ArchitectureError(
            f"is a network of {architecture}, which takes a mask beside the image; expected one that takes"
            " images only (mirl_sparse.sparsify converts any nn.Module in Python)"
        )
    return descriptor


def _call_of(descriptor: ImageModelDescriptor[nn.Module]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Return how spandrel calls a model.

    The descriptor itself would clip the result, and run in inference mode, which torch.compile cannot see
    through.
    """
    return descriptor._call_fn
