"""Run the network itself by PyTorch, on any device: the engine of the reference backend."""

from __future__ import annotations

from torch import Tensor

from mirl_sparse.architectures.promptir.network import PromptIR

_BYTES_PER_PIXEL = 6500  # what PyTorch holds at its peak for a network of dim 48; it grows with dim


class ReferenceEngine:
    """Run a network with PyTorch's own operators; nothing is packed, so changed weights count at once."""

    def __init__(self, network: PromptIR) -> None:
        self._network = network
        self.multiple = network.config.multiple

    def __call__(self, image: Tensor) -> Tensor:
        """Restore an image (B, 3, H, W); return a new tensor of its shape."""
        restored: Tensor = self._network(image)
        return restored

    def has_plan(self, image: Tensor) -> bool:
        """Return False: PyTorch allocates memory anew for every image."""
        return False

    def required_bytes(self, batch: int, height: int, width: int) -> int:
        """Return about how much memory, in bytes, PyTorch holds at its peak for (batch, 3, height, width)."""
        config = self._network.config
        return _BYTES_PER_PIXEL * config.dim // 48 // config.unshuffle**2 * batch * height * width

    @property
    def cached_bytes(self) -> int:
        """Return 0: the engine holds no memory between images."""
        return 0

    def release(self) -> None:
        """Do nothing: the engine holds no memory between images."""
