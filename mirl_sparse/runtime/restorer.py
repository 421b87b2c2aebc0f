"""`SparseRestorer`: a pruned network as a drop-in module."""

from __future__ import annotations

import json
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_sparse.architectures.promptir.config import MULTIPLE, PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR, remove_pruning
from mirl_sparse.defaults import TICKET
from mirl_sparse.errors import UserError
from mirl_sparse.photos.images import read_image, to_rgb
from mirl_sparse.runtime.cpu import Engine
from mirl_sparse.runtime.memory import available_on
from mirl_sparse.runtime.tiling import restore_by_tiles, tile_size
from mirl_sparse.runtime.triton import PRECISIONS, TritonEngine, Tuning, check_gpu
from mirl_sparse.runtime.tuning import read_tuning
from mirl_sparse.tickets.file import find, read_ticket

BACKENDS = ("auto", "cpu", "reference", "triton")
_REFERENCE_BYTES = 6500  # per pixel and `dim` of 48, what PyTorch holds at its peak
_IMAGE_BYTES = 60  # per pixel: the image, padded, and its results


def _reflected(length: int, padded: int, device: torch.device) -> Tensor:
    """Indices 0 .. padded - 1 reflected into [0, length); a single pixel repeats."""
    period = max(1, 2 * (length - 1))
    index = torch.arange(padded, device=device) % period
    return torch.minimum(index, period - index) if length > 1 else torch.zeros_like(index)


def _state(weights: Iterable[Tensor]) -> list[tuple[int, int]]:
    """What changes when a weight does. Tensors of inference mode have no version: they are not meant to change."""
    return [(w.data_ptr(), -1 if w.is_inference() else w._version) for w in weights]


class SparseRestorer(nn.Module):
    """Restores RGB images with a pruned PromptIR, of any size and on any backend.

    ``backend`` is "cpu" (C++ kernels), "triton" (GPUs), "reference" (PyTorch, any device) or "auto": the C++ kernels where
    they were built, else the reference with a warning. On "cpu" and "triton" the weights are packed at the first call
    and whenever they have changed; what is changed through ``.data``, PyTorch does not count: call `repack` then. Masks of
    torch.nn.utils.prune are made permanent. ``precision`` is that of the features in between: float16 (the default), bfloat16 or float32
    on "triton", float32 on the others; images are float32. The network is put in eval mode, and its weights want no gradients.
    On "triton" the first image takes longer, unless there is a ``tuning``: it decides which steps PyTorch's dense operators do faster
    on this GPU, and do from then on (not in float32).

    An image is restored as a whole, in buffers of about 0.8 KB per pixel at full size. Where these would take
    more than ``max_memory`` bytes (by default nine tenths of what the system, or the GPU, has left), it is restored in overlapping tiles
    instead, with a warning: attention and prompts then see a tile each, so the result is not quite the same.
    """

    def __init__(
        self,
        network: PromptIR,
        backend: str = "auto",
        max_memory: int | None = None,
        precision: str | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise UserError(f"backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
        if backend == "auto":
            backend = "cpu" if cpu.available() else "reference"
            if backend == "reference":
                try:
                    cpu.library()
                except BackendError as error:
                    warnings.warn(f"running the slower reference backend: {error}", stacklevel=2)
        if backend == "cpu":
            cpu.library()
        if backend == "triton":
            check_gpu()
        self.precision = precision or ("float16" if backend == "triton" else "float32")
        if self.precision not in (PRECISIONS if backend == "triton" else ("float32",)):
            known = ", ".join(PRECISIONS) if backend == "triton" else "float32"
            raise UserError(f"precision is {precision!r} on backend {backend!r}; expected {known}")
        remove_pruning(network)
        self.network = network.eval().requires_grad_(False)
        self.backend = backend
        self.max_memory, self.tuning = max_memory, tuning
        self._config = json.dumps(network.config.to_dict())  # as the op takes it
        self._engine: tuple[object, Engine | TritonEngine] | None = (
            None  # and the state of the weights it was packed from
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": None}  # packed anew where it is copied to

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = TICKET,
        backend: str = "auto",
        max_memory: int | None = None,
        precision: str | None = None,
    ) -> SparseRestorer:
        """From a ticket file, or from a shipped ticket's name ("small"); on "triton" it is put on the GPU, and run by what `tuning.tune`
        has kept beside the file."""
        file = find(source)
        restorer = cls(read_ticket(file)[0], backend, max_memory, precision)
        if backend == "triton":
            restorer.tuning = read_tuning(file, restorer.precision)
        return restorer.to("cuda") if backend == "triton" and torch.cuda.is_available() else restorer

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] of any H, W from 1 up to the same shape, not clipped."""
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(
                f"input of shape {tuple(image.shape)}; expected (B, 3, H, W) of 1x1 pixel or more"
            )
        if torch.compiler.is_compiling():  # one opaque op: nothing in it is worth another compiler's time
            weights, memory = list(self.network.parameters()), self.max_memory or 0
            return restore_op(image, weights, self._config, self.backend, memory, self.precision)
        height, width = image.shape[2:]
        padded = image
        for axis, n in ((2, height), (3, width)):
            if n % MULTIPLE:
                padded = padded.index_select(axis, _reflected(n, -(-n // MULTIPLE) * MULTIPLE, image.device))
        with torch.no_grad():
            return self._within_memory(padded.contiguous())[:, :, :height, :width]

    def _within_memory(self, image: Tensor) -> Tensor:
        """The image as a whole, or by tiles where its buffers would be too large."""
        engine = None if self.backend == "reference" else self._packed()
        if engine and engine.has_plan(image):
            return self._run(image)
        batch, _, height, width = image.shape

        def limit() -> int | None:
            free = available_on(image.device) if self.max_memory is None else None
            return self.max_memory if free is None else free * 9 // 10

        def needs(h: int, w: int) -> int:
            return self._needs(batch, h, w) + _IMAGE_BYTES * batch * height * width

        allowed = limit()
        if allowed is None:
            return self._run(image)
        if engine and engine.kept and engine.kept + needs(height, width) > allowed:
            engine.release()  # what other sizes left is no reason for tiles
            allowed = limit() or allowed
        if batch > 1 and needs(height, width) > allowed:
            return torch.cat([self._within_memory(half) for half in image.chunk(2)])
        tile = tile_size(height, width, allowed, needs)
        if tile == (height, width):
            return self._run(image)
        warnings.warn(
            f"the whole image of {height}x{width} needs {needs(height, width) / 1e6:,.0f} MB of memory, more than the"
            f" {allowed / 1e6:,.0f} MB allowed: restored in tiles of {tile[0]}x{tile[1]}, whose attention and prompts see"
            " no more than the tile, so the result differs from the whole image's, most of all in haze",
            stacklevel=4,
        )
        return restore_by_tiles(image, tile, self._run)

    def _needs(self, batch: int, height: int, width: int) -> int:
        if self.backend != "reference":
            return self._packed().bytes(batch, height, width)
        return _REFERENCE_BYTES * self.network.config.dim // 48 * batch * height * width

    def _run(self, image: Tensor) -> Tensor:
        return self.network(image) if self.backend == "reference" else self._packed()(image)

    def repack(self) -> None:
        """Pack the weights anew at the next call, of what was compiled or exported from this as well."""
        self._engine = None
        _forget(list(self.network.parameters()))

    def _packed(self) -> Engine | TritonEngine:
        def now() -> object:
            names, weights = zip(*self.network.named_parameters(), strict=True)
            return names, _state(weights)

        state, kept = now(), self._engine
        if kept is None or kept[0] != state:
            if remove_pruning(self.network):
                self.network.requires_grad_(False)
                state = now()
            if self.backend == "triton":
                engine: Engine | TritonEngine = TritonEngine(self.network, self.precision, self.tuning)
            else:
                engine = Engine(self.network)
            kept = self._engine = state, engine
        return kept[1]

    def restore(self, image: str | Path | Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A photo (path, PIL image, or uint8 (H, W, 3) RGB) to the restored uint8 (H, W, 3)."""
        if isinstance(image, (str, Path)):
            image = read_image(image)
        elif isinstance(image, Image.Image):
            image = to_rgb(image)
        if (
            not isinstance(image, np.ndarray)
            or image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] != 3
        ):
            what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(f"image is {what}; expected a path, a PIL image or a uint8 array (H, W, 3)")
        x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)[None]
        y = (
            self.forward(x.to(self.network.output.weight.device))[0]
            .clamp(0, 1)
            .mul_(255)
            .round_()
            .to(torch.uint8)
        )
        return np.ascontiguousarray(y.permute(1, 2, 0).cpu().numpy())


# Compiled and exported models hold weights, not restorers: theirs are kept here, the last two. They hold the weights'
# memory, so that an address means the same weights as long as it is known.
_restorers: OrderedDict[tuple[object, ...], SparseRestorer] = OrderedDict()
_restorers_lock = threading.Lock()


def _restorer_of(
    weights: Sequence[Tensor], config: str, backend: str, max_memory: int, precision: str
) -> SparseRestorer:
    key = config, backend, max_memory, precision, *_state(weights)
    with _restorers_lock:
        if key in _restorers:
            _restorers.move_to_end(key)
            return _restorers[key]
        with torch.device("meta"):
            network = PromptIR(PromptIRConfig.from_dict(json.loads(config)))
        names = [name for name, _ in network.named_parameters()]
        network.load_state_dict(dict(zip(names, (w.detach() for w in weights), strict=True)), assign=True)
        restorer = _restorers[key] = SparseRestorer(network, backend, max_memory or None, precision)
        while len(_restorers) > 2:
            _restorers.popitem(last=False)
        return restorer


def _forget(weights: Sequence[Tensor]) -> None:
    """Pack these weights anew for compiled and exported models, too."""
    state = tuple(_state(weights))
    with _restorers_lock:
        for key in [key for key in _restorers if key[-len(state) :] == state]:
            del _restorers[key]


# It records graphs of its own: newer versions of PyTorch are told to put it into none of theirs.
_TAGS: dict[str, Any] = (
    {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
)


@torch.library.custom_op("mirl::restore", mutates_args=(), **_TAGS)
def restore_op(
    image: Tensor,
    weights: Sequence[Tensor],
    config: str,
    backend: str,
    max_memory: int,
    precision: str = "float32",
) -> Tensor:
    """`SparseRestorer.forward` as one op: image (B, 3, H, W), the network's parameters in their order and its config
    as JSON; ``max_memory`` in bytes, 0 for the default. Without a tuning, which no graph could hold."""
    return _restorer_of(weights, config, backend, max_memory, precision)(image).contiguous()


@restore_op.register_fake
def _(
    image: Tensor,
    weights: Sequence[Tensor],
    config: str,
    backend: str,
    max_memory: int,
    precision: str = "float32",
) -> Tensor:
    return image.new_empty(image.shape)
