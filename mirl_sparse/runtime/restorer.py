"""Wrap a pruned network as a drop-in module, `SparseRestorer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.defaults import TICKET
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.backends import AUTO, BACKENDS, choose_backend, choose_precision
from mirl_sparse.runtime.compiled import forget_weights, restore_op
from mirl_sparse.runtime.engine import Engine
from mirl_sparse.runtime.execution import check_image, restore_image, wants_gradients
from mirl_sparse.runtime.photo_arrays import restore_photo
from mirl_sparse.runtime.snapshot import Snapshot
from mirl_sparse.runtime.tuning import Tuning, read_tuning
from mirl_sparse.tickets import describe, find_ticket, pack, read_ticket, remove_pruning
from mirl_sparse.tickets.sharing import Shareable

if TYPE_CHECKING:
    from mirl_sparse.tickets.hub import HubTicket


class SparseRestorer(Shareable, nn.Module):
    """Restore RGB images of any size with a pruned PromptIR, on any backend.

    On "cpu" and "triton" the weights are packed at the first call, and again whenever they have changed.
    Of changes through ``.data`` or numpy, those of single weights may be missed: call `repack`. Masks of
    torch.nn.utils.prune are made permanent. The network is put in eval mode, and its weights want no
    gradients.

    An image is restored as a whole, in buffers of about 0.8 KB per pixel for a network of full size. If these
    would take more than ``max_memory``, the image is restored in overlapping tiles instead, with a warning.
    Attention and prompts then see only one tile each, so the result is not quite the same.

    On "triton" without a tuning, the first image takes longer: it decides which steps PyTorch's dense
    operators do faster on this GPU, and they do them from then on (not in float32).

    Args:
        network: The network to run.
        backend: "cpu" (C++ kernels), "triton" (GPUs), "reference" (PyTorch, any device), or "auto": the C++
            kernels where they were built, else the reference with a warning.
        max_memory: Bytes that the buffers may take; by default nine tenths of what the system, or the
            GPU, has left.
        precision: On "triton", the precision of the features between the layers: "float16" (the default),
            "bfloat16" or "float32". On "cpu", "float32" (the default), or "bfloat16": what layers and
            attention multiply is rounded to bfloat16 where that is faster; everything else stays float32.
            That pays for networks of which little is pruned, on processors with AMX or AVX512_BF16
            (``mirl-sparse doctor`` tells). On "reference", "float32" alone. Images are always float32.
        tuning: The fastest settings for this GPU; only "triton" uses them.

    Attributes:
        network: The network to run.
        backend: The backend's name; never "auto".
        precision: The precision of the features.
        max_memory: Bytes that the buffers may take; it may be changed.
        tuning: The fastest settings for this GPU; they may be changed before the first call.

    Raises:
        UserError: If the backend or its precision is not known.
        BackendError: If the backend cannot run here.

    Examples:
        >>> import numpy
        >>> from mirl_sparse import SparseRestorer
        >>> restorer = SparseRestorer.from_pretrained()
        >>> photo = numpy.full((30, 50, 3), 128, numpy.uint8)
        >>> restorer.restore(photo).shape
        (30, 50, 3)
        >>> restorer(torch.rand(1, 3, 30, 50)).shape
        torch.Size([1, 3, 30, 50])
    """

    def __init__(
        self,
        network: PromptIR,
        backend: str = AUTO,
        max_memory: int | None = None,
        precision: str | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        super().__init__()
        self.backend = choose_backend(backend)
        self.precision = choose_precision(self.backend, precision)
        remove_pruning(network)
        self.network = network.eval().requires_grad_(False)
        self.max_memory, self.tuning = max_memory, tuning
        self._config = json.dumps(network.config.to_dict())  # as the op takes it
        # The engine, behind the network as it was packed.
        self._packed: tuple[Snapshot, Engine] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # a copy packs the weights anew

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = TICKET,
        backend: str = AUTO,
        max_memory: int | None = None,
        precision: str | None = None,
    ) -> SparseRestorer:
        """Return a restorer of a ticket.

        On "triton" it is put on the GPU, and uses the tuning beside the ticket.

        Args:
            source: A ticket file, the name of a shipped ticket ("small", "haze"), a folder that
                `save_pretrained` wrote, or a repository of the Hugging Face Hub ("user/name", or
                "user/name@revision"; extra ``hub``).
            backend: As for the class.
            max_memory: As for the class.
            precision: As for the class.

        Raises:
            UserError: If there is no such ticket, it cannot be downloaded, or the ticket or its tuning file
                is damaged.
            BackendError: If the backend cannot run here.
        """
        file = find_ticket(source)
        restorer = cls(read_ticket(file)[0], backend, max_memory, precision)
        kind = BACKENDS[restorer.backend]
        if kind.tunable:
            restorer.tuning = read_tuning(file, restorer.precision)
        return restorer.to(kind.device()) if kind.device else restorer

    def _hub_ticket(self) -> HubTicket:
        from mirl_sparse.tickets.hub import HubTicket

        statistics = describe(self.network).statistics
        return HubTicket(pack(self.network, statistics), statistics)

    def forward(self, image: Tensor) -> Tensor:
        """Restore an image.

        Args:
            image: (B, 3, H, W) float32 in [0, 1], B from 0 and H and W from 1 up.

        Returns:
            A tensor of the same shape, not clipped.

        Raises:
            TypeError: If the image is no tensor.
            ValueError: If the image is of another shape.
            BackendError: If the image is of another dtype, or on another device than the weights.
            UserError: If even small tiles would take more than ``max_memory``, or the image requires a
                gradient.
        """
        check_image(image)
        if wants_gradients(image):
            raise UserError(
                "the image requires a gradient, which the restorer does not compute; call it under"
                " torch.no_grad(), or take the gradient through its dense network, restorer.network"
            )
        if len(image) == 0:
            return torch.empty_like(image)
        if torch.compiler.is_compiling():  # one opaque op: nothing in it is worth another compiler's time
            weights, memory = list(self.network.parameters()), self.max_memory or 0
            return restore_op(image, weights, self._config, self.backend, memory, self.precision)
        return restore_image(self.engine(), image, self.max_memory)

    def restore(self, image: str | Path | Image.Image | NDArray[Any], strength: float = 1.0) -> NDArray[Any]:
        """Restore a photo.

        Args:
            image: A path, a PIL image, or an array (H, W, 3), RGB, uint8 or uint16.
            strength: Share of the restored photo in the result, 0 to 1; the rest is the photo as it was.

        Returns:
            An array (H, W, 3), RGB: uint16 for an array of uint16, else uint8.

        Raises:
            UserError: If the image is something else, its file cannot be read, or the strength is no share.
        """
        device = self.network.output.weight.device
        return restore_photo(image, strength, lambda x: self.forward(x.to(device)))

    def repack(self) -> None:
        """Pack the weights anew at the next call; that of a compiled or exported model counts as well.

        A compiled model needs it after every change through ``.data``, numpy or a fused optimizer.
        """
        self._packed = None
        forget_weights(list(self.network.parameters()))

    def engine(self) -> Engine:
        """Return the engine for the current weights; pack them if they have changed."""
        kind = BACKENDS[self.backend]
        if not kind.packs:
            return kind.make_engine(self.network, self.precision, self.tuning)
        if self._packed is None or not self._packed[0].is_current():
            if remove_pruning(self.network):
                self.network.requires_grad_(False)
            engine = kind.make_engine(self.network, self.precision, self.tuning)
            self._packed = Snapshot(self.network), engine
        return self._packed[1]
