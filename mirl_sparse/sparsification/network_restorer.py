"""Restore photos by a pruned network of any architecture that spandrel knows, `NetworkRestorer`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mirl_sparse.architectures.image_network import ImageNetwork, NetworkWeights
from mirl_sparse.choices import BackendName
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.backends import AUTO, choose_backend
from mirl_sparse.runtime.execution import wants_gradients
from mirl_sparse.runtime.memory import available_on, peak_bytes
from mirl_sparse.runtime.padding import pad_to_size
from mirl_sparse.runtime.photo_arrays import PhotoLike, restore_photo
from mirl_sparse.runtime.tiling import SMALLEST, restore_by_tiles, tile_size
from mirl_sparse.sparsification.layers import count_nonzero, prunable_weights
from mirl_sparse.sparsification.report import SparsityReport
from mirl_sparse.sparsification.sparsify import sparsify
from mirl_sparse.tickets import pack_network, remove_pruning
from mirl_sparse.tickets.sharing import Shareable

if TYPE_CHECKING:
    from mirl_sparse.tickets.hub import HubTicket

_SIDE = 128  # of the example that shows how large the images are that layers see
_SIDE_ENLARGED = 64  # the same for networks that enlarge, whose layers see the small image
_MARGIN = 1.25  # of memory: what the example takes, by pixels, and a quarter more
_BACKENDS = (BackendName.AUTO, BackendName.CPU, BackendName.REFERENCE)
# Channels of image and result with which a network restores photos: each channel alone, RGB, RGB and alpha.
_PHOTOS = ((1, 1), (3, 3), (4, 4))


class NetworkRestorer(Shareable, nn.Module):
    """Restore RGB images of any size with a pruned network of any architecture that spandrel knows.

    On "cpu" the network is a sparsified copy, made by `sparsify` when the restorer is made. That takes the
    time of some runs on a small image. On "reference" it is the network itself. Masks of torch.nn.utils.prune
    are made permanent.

    Images are padded by reflection to a size that the network takes. If a whole image would take more than
    ``max_memory``, it is restored in overlapping tiles, with a warning. A network of one channel restores
    red, green and blue one by one. A network of four gets the image as opaque.

    Args:
        network: The network.
        backend: "cpu" (C++ kernels), "reference" (PyTorch), or "auto": the C++ kernels where they were built,
            else the reference with a warning.
        max_memory: Bytes that tensors may take; by default nine tenths of what the system has left.

    Attributes:
        network: The network that runs, with the dense one's names. ``torch.compile`` and other code that
            wants a plain network takes this one.
        backend: The backend's name; never "auto".
        scale: How many times larger the result is than the image.
        max_memory: Bytes that tensors may take; it may be changed.
        report: What became of every layer; None on "reference".

    Raises:
        UserError: If the backend is another one, or the sparse network restores something else than the dense
            one.
    """

    report: SparsityReport | None

    def __init__(self, network: ImageNetwork, backend: str = AUTO, max_memory: int | None = None) -> None:
        super().__init__()
        if backend not in _BACKENDS:
            raise UserError(
                f"backend is {backend!r}, which does not run tickets of {network.architecture}; expected one"
                f" of {', '.join(_BACKENDS)}"
            )
        self.backend = choose_backend(backend)
        remove_pruning(network)
        self.scale, self.max_memory = network.scale, max_memory
        example = example_image(network)
        if self.backend == BackendName.CPU:
            network = cast(ImageNetwork, sparsify(network, example))
        self.network = network
        self.report = getattr(network, "report", None)
        with torch.no_grad():
            taken = peak_bytes(lambda: network(example))
        self._bytes_per_pixel = _MARGIN * taken / example[0, 0].numel()

    @property
    def noise_level(self) -> float | None:
        """Return the standard deviation of the noise to remove, of 0-255; None if the network takes none."""
        return self.network.noise_level

    @noise_level.setter
    def noise_level(self, level: float) -> None:
        """Set the noise level.

        Raises:
            UserError: The network takes none, or it is not between 0 and 255.
        """
        if self.network.noise_level is None:
            raise UserError(f"{self.network.architecture} here takes no noise level; leave it out")
        if not 0 <= level <= 255:
            raise UserError(f"the noise level is {level}; expected 0 to 255")
        self.network.noise_level = level

    def check_photos(self) -> None:
        """Raise UserError unless the network takes and gives channels of photos."""
        channels = self.network.input_channels, self.network.output_channels
        if channels not in _PHOTOS:
            raise UserError(
                f"{self.network.architecture} here takes images of {channels[0]} channels and gives"
                f" {channels[1]}; expected 1, 3 or 4 of both to restore photos"
            )

    def forward(self, image: Tensor) -> Tensor:
        """Restore an image.

        Args:
            image: (B, 3, H, W) float32 in [0, 1], B from 0 and H and W from 1 up; or with the network's own
                number of channels.

        Returns:
            A tensor (B, C, scale * H, scale * W), not clipped. C is 3, or the network's own number for an
            image of the network's own.

        Raises:
            UserError: If the image has another shape or wants gradients, or even small tiles would take more
                than ``max_memory``.
        """
        taken, channels = self.network.input_channels, image.shape[1] if image.ndim == 4 else 0
        if channels not in (3, taken) or 0 in image.shape[2:]:
            raise UserError(
                f"input of shape {tuple(image.shape)}; expected (B, {'3' if taken == 3 else f'3 or {taken}'},"
                " H, W) of 1x1 pixel or more"
            )
        if wants_gradients(image):
            raise UserError(
                "the image requires a gradient, which the restorer does not compute; call it under"
                " torch.no_grad(), or take the gradient through restorer.network"
            )
        with torch.no_grad():
            if channels == taken:
                return self._restore(image)
            self.check_photos()
            if taken == 1:
                restored = self._restore(image.reshape(-1, 1, *image.shape[2:]))
                return restored.reshape(-1, 3, *restored.shape[2:])
            return self._restore(torch.cat([image, torch.ones_like(image[:, :1])], 1))[:, :3]

    def restore(self, image: PhotoLike, strength: float = 1.0) -> NDArray[Any]:
        """Restore a photo.

        Args:
            image: A path, a PIL image, or an array (H, W, 3), RGB, uint8 or uint16.
            strength: Share of the restored photo in the result, 0 to 1. The rest is the photo as it was; for
                a network that enlarges, the photo enlarged by bicubic interpolation.

        Returns:
            An array (scale * H, scale * W, 3), RGB: uint16 for an array of uint16, else uint8.

        Raises:
            UserError: If the image is something else, its file cannot be read, the strength is no share, or
                the network takes other channels than photos have.
        """
        self.check_photos()
        return restore_photo(image, strength, self.forward)

    def _hub_ticket(self) -> HubTicket:
        from mirl_sparse.tickets.hub import HubTicket

        state = self.network.model.state_dict()
        parameters = list(self.network.model.parameters())
        statistics = _counted("parameters", parameters)
        statistics |= _counted("weights", prunable_weights(self.network.model))
        statistics["density"] = statistics["weights"] / statistics["weights_dense"]
        weights = NetworkWeights(self.network.architecture, state, "a restorer")
        return HubTicket(pack_network(weights, statistics), statistics)

    def _restore(self, image: Tensor) -> Tensor:
        """Restore an image of the network's channels: as a whole, batch by halves, or in tiles."""
        batch, _, height, width = image.shape
        if batch == 0:
            shape = 0, self.network.output_channels, self.scale * height, self.scale * width
            return image.new_empty(shape)
        size = self.network.size.padded(height, width)
        allowed = self._allowed(image.device)
        if allowed is None or self._needs(batch, *size) <= allowed:
            return self._cropped(pad_to_size(image, *size), height, width)
        if batch > 1:
            return torch.cat([self._restore(half) for half in image.chunk(2)])
        return self._in_tiles(image, allowed)

    def _in_tiles(self, image: Tensor, allowed: int) -> Tensor:
        """Restore one image in tiles that take no more memory than is allowed."""
        rule, (height, width) = self.network.size, image.shape[2:]
        beside = self._beside(height, width)
        smallest = max(SMALLEST, 2 * rule.multiple, 2 * rule.minimum)
        padded = type(rule)(rule.minimum, rule.multiple).padded(height, width)
        tile = tile_size(
            *padded, rule.multiple, allowed, lambda h, w: self._needs(1, h, w) + beside, smallest
        )
        if rule.square:
            tile = (min(tile), min(tile))
        warnings.warn(
            f"the whole image of {height}x{width} needs {self._needs(1, *padded) / 1e6:,.0f} MB of memory,"
            f" more than the {allowed / 1e6:,.0f} MB allowed: restored in tiles of {tile[0]}x{tile[1]}, so"
            " the result may differ a little from the whole image's",
            stacklevel=5,
        )
        # Tiles begin anywhere: only their sizes matter to these networks.
        restored = restore_by_tiles(pad_to_size(image, *padded), tile, 1, self.network, self.scale)
        return restored[..., : self.scale * height, : self.scale * width]

    def _cropped(self, image: Tensor, height: int, width: int) -> Tensor:
        restored: Tensor = self.network(image)
        return restored[..., : self.scale * height, : self.scale * width]

    def _needs(self, batch: int, height: int, width: int) -> int:
        return int(self._bytes_per_pixel * batch * height * width)

    def _beside(self, height: int, width: int) -> int:
        """Return how many bytes the image, padded, and the sum of its tiles take."""
        return 4 * height * width * (2 * self.network.input_channels + 4 * self.scale**2)

    def _allowed(self, device: torch.device) -> int | None:
        if self.max_memory is not None:
            return self.max_memory
        free = available_on(device)
        return None if free is None else free * 9 // 10


def _counted(name: str, tensors: Iterable[Tensor]) -> dict[str, float]:
    """Return how many numbers are not zero, and how many there are, as a ticket stores them."""
    nonzero, total = count_nonzero(tensors)
    return {name: nonzero, f"{name}_dense": total}


def example_image(network: ImageNetwork, side: int | None = None) -> Tensor:
    """Return an image (1, C, H, W) of noise that a network takes.

    Args:
        network: The network.
        side: Height and width, before they are made such that the network takes them; by default what shows
            how large the images are that layers see.
    """
    side = side or (_SIDE if network.scale == 1 else _SIDE_ENLARGED)
    shape = (1, network.input_channels, *network.size.padded(side, side))
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))
