"""`SparseRestorer`: a pruned network as a drop-in module."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mirl_kernels import _cpu
from mirl_sparse.engine import Engine
from mirl_sparse.errors import UserError
from mirl_sparse.images import read_image, to_rgb
from mirl_sparse.network import MULTIPLE, PromptIR
from mirl_sparse.ticket import DEFAULT, find, read_ticket

BACKENDS = ("auto", "cpu", "reference")


def _reflected(length: int, padded: int) -> Tensor:
    """Indices 0 .. padded - 1 reflected into [0, length); a single pixel repeats."""
    period = max(1, 2 * (length - 1))
    index = torch.arange(padded) % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


class SparseRestorer(nn.Module):
    """Restores RGB images with a pruned PromptIR, of any size and on any backend.

    ``backend`` is "cpu" (C++ kernels), "reference" (PyTorch, any device) or "auto": the kernels where
    they were built, else the reference with a warning. On "cpu" the weights are packed at the first call
    and whenever they have changed. The network is put in eval mode, and its weights want no gradients.
    """

    def __init__(self, network: PromptIR, backend: str = "auto") -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise UserError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
        if backend == "auto":
            backend = "cpu" if _cpu.available() else "reference"
            if backend == "reference":
                try:
                    _cpu.library()
                except _cpu.BackendError as error:
                    warnings.warn(f"running the slower reference backend: {error}", stacklevel=2)
        if backend == "cpu":
            _cpu.library()
        self.network = network.eval().requires_grad_(False)
        self.backend = backend
        self._engine: tuple[object, Engine] | None = None  # and the state of the weights it was packed from

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": None}  # packed anew where it is copied to

    @classmethod
    def from_pretrained(cls, source: str | Path = DEFAULT, backend: str = "auto") -> SparseRestorer:
        """From a ticket file, or from a shipped ticket's name ("small")."""
        return cls(read_ticket(find(source))[0], backend)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] of any H, W from 1 up to the same shape, not clipped."""
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(f"input of shape {tuple(image.shape)}; expected (B, 3, H, W) of 1x1 pixel or more")
        height, width = image.shape[2:]
        rows, columns = (_reflected(n, -(-n // MULTIPLE) * MULTIPLE).to(image.device) for n in (height, width))
        padded = image[:, :, rows][:, :, :, columns].contiguous()
        with torch.no_grad():
            return self._run(padded)[:, :, :height, :width]

    def _run(self, image: Tensor) -> Tensor:
        if self.backend == "reference":
            return self.network(image)
        # Tensors of inference mode have no version: they are not meant to change.
        state = [(p.data_ptr(), -1 if p.is_inference() else p._version) for p in self.network.parameters()]
        kept = self._engine
        if kept is None or kept[0] != state:
            kept = self._engine = state, Engine(self.network)
        return kept[1](image)

    def restore(self, image: str | Path | Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A photo (path, PIL image, or uint8 (H, W, 3) RGB) to the restored uint8 (H, W, 3)."""
        if isinstance(image, (str, Path)):
            image = read_image(image)
        elif isinstance(image, Image.Image):
            image = to_rgb(image)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"image is {what}; expected a path, a PIL image or a uint8 array (H, W, 3)")
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)[None]
        y = self.forward(x)[0].clamp(0, 1).mul(255).round().to(torch.uint8)
        return np.ascontiguousarray(y.permute(1, 2, 0).numpy())
