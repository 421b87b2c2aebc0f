"""Run a packed network on a GPU, its launches replayed as CUDA graphs: the engine of the Triton backend."""

from __future__ import annotations

import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from mirl_kernels.core.triton import MAX_HIDDEN_BYTES, Tile, Tuner, Workspace
from mirl_kernels.errors import BackendError
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.gpu import capturing, check_gpu, interpreting, is_out_of_memory, seconds
from mirl_sparse.runtime.triton_network import HIDDEN_RATIO, PRECISIONS, PackedNetwork, workspace
from mirl_sparse.runtime.tuning import Tuning

_MAX_SIZES = 4  # image sizes, per stream, whose launches are cached as CUDA graphs

_Key = tuple[tuple[int, ...], int]  # an image's shape, and the stream that it is restored on


@dataclass
class _SizeCache:
    """Keep what the next image of one size, on one stream, uses again. The second image adds the graph."""

    workspace: Workspace
    room: bool = True  # whether there is memory for a graph, which has buffers of its own
    graph: torch.cuda.CUDAGraph | None = None
    x: Tensor | None = None  # the graph's input
    y: Tensor | None = None  # the graph's result


class TritonEngine:
    """Run a PromptIR that is packed for the Triton kernels, between float32 images.

    Features of float16 that exceed 65,504 become 65,504; if this happens in the first image, a warning says
    so. Without a tuning, the first image takes longer: on a GPU, each step is timed against PyTorch's dense
    operators, and the faster one is used from then on. So another process may round differently. Nothing is
    timed in float32, where PyTorch's convolutions have fewer digits (TF32). The launches for an image size
    are recorded as a CUDA graph when the size comes for the second time. Several threads may call an engine,
    on streams of their own: each stream has buffers of its own. A caller may record a graph of a call after
    one call with the same size.

    Args:
        network: The network; its weights are packed at once, and stay on their device. Later changes of them
            do not count.
        precision: Precision of the activations: "float16", "bfloat16" or "float32".
        tuning: The tiles and the dense steps to use.

    Attributes:
        multiple: Number that the sides of images are multiples of.

    Raises:
        BackendError: If there is no suitable GPU, Triton is not installed, or the weights are not on a GPU.
    """

    def __init__(self, network: PromptIR, precision: str = "float16", tuning: Tuning | None = None) -> None:
        self.device = network.output.weight.device
        check_gpu()
        if self.device.type != "cuda" and not interpreting():
            raise BackendError(
                f'backend "triton" runs on GPUs, the weights are on {self.device}:'
                ' move the module to one (.to("cuda"))'
            )
        self.multiple, unshuffle = network.config.multiple, network.config.unshuffle
        self._dtype, self._width = PRECISIONS[precision], network.config.dim / unshuffle**2
        self._program = PackedNetwork(network, self._dtype)
        self._sizes: OrderedDict[_Key, _SizeCache] = OrderedDict()
        self._tiles: Mapping[str, Tile] = tuning.tiles if tuning else {}
        self._dense: frozenset[str] | None = None  # None until the steps were timed
        self._is_checked = False  # whether an image has shown that the precision suffices
        if tuning:
            self._choose(tuning.dense)
        self._program.to(self.device)
        self._lock = threading.Lock()

    def required_bytes(self, batch: int, height: int, width: int) -> int:
        """Return about how much memory, in bytes, an image of shape (batch, 3, height, width) needs.

        It counts the features, the widest hidden channels of each level, and what a dense step makes of them.
        """
        features = int(batch * height * width * self._width) * self._dtype.itemsize
        hidden = [min(2 * HIDDEN_RATIO * features >> level, MAX_HIDDEN_BYTES) for level in range(4)]
        return 4 * features + sum(hidden) + min(3 * hidden[0], MAX_HIDDEN_BYTES)

    @property
    def cached_bytes(self) -> int:
        """Return about how much memory, in bytes, is held for the next images of the cached sizes."""
        return sum(
            self.required_bytes(batch, height, width) for (batch, _, height, width), _ in list(self._sizes)
        )

    def release(self) -> None:
        """Free everything that is held for the cached sizes."""
        with self._lock:
            self._sizes.clear()

    def has_plan(self, image: Tensor) -> bool:
        """Return whether an image of this shape needs no more memory than the engine holds.

        It is true as well while the caller records a graph: then nobody may ask the GPU how much memory is
        free.
        """
        if image.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return image.device.type == "cuda"
        cache = self._sizes.get(self._key(image))
        return cache is not None and cache.graph is not None

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Restore an image.

        Args:
            image: (B, 3, H, W) float32 on the engine's device, H and W as `multiple` says.

        Returns:
            A new tensor of the same shape.

        Raises:
            ValueError: If the image is of another dtype, on another device, or of other sides.
        """
        if image.device != self.device or image.dtype != torch.float32:
            raise ValueError(f"image is {image.dtype} on {image.device}; expected float32 on {self.device}")
        if image.shape[2] % self.multiple or image.shape[3] % self.multiple:
            raise ValueError(
                f"input is {image.shape[2]}x{image.shape[3]}; expected multiples of {self.multiple}"
            )
        if self.device.type != "cuda":
            return self._run(image.contiguous(), self._workspace(), self._dense or frozenset())
        # Tensors made in inference mode could not be written to outside of it.
        with self._lock, torch.cuda.device(self.device), torch.inference_mode(False), torch.no_grad():
            image = image.contiguous()
            # Kernels are compiled for addresses that are multiples of 16, as those of new tensors are.
            return self._restore_on_gpu(image if image.data_ptr() % 16 == 0 else image.clone())

    @torch.no_grad()
    def tune(self, image: Tensor, budget: float) -> Tuning:
        """Find the fastest settings for images of one size. The engine itself remains untuned.

        Call it on an engine that has restored nothing yet. First it times the tiles of each kernel, as long
        as the budget lasts, then each step against dense operators.

        Args:
            image: (B, 3, H, W) float32 on the engine's device, H and W as `multiple` says.
            budget: The time for the tiles, in seconds.
        """
        tuner = Tuner(seconds, time.monotonic() + budget)
        with nullcontext() if self.device.type != "cuda" else torch.cuda.device(self.device):
            with tuner.activate():
                self._program(image.contiguous(), self._workspace())
            tuned = workspace(self.device, tuner.fastest)
            return Tuning(tuner.fastest, self._dense_where_faster(image.contiguous(), tuned))

    def _key(self, image: Tensor) -> _Key:
        return tuple(image.shape), torch.cuda.current_stream(self.device).cuda_stream

    def _workspace(self) -> Workspace:
        return workspace(self.device, self._tiles)

    def _choose(self, dense: frozenset[str]) -> frozenset[str]:
        """Do these steps by dense operators; free the dense weights of all others."""
        self._dense = dense
        self._program.dense = {n: op for n, op in self._program.dense.items() if n in dense}
        return dense

    def _dense_where_faster(self, image: Tensor, workspace: Workspace) -> frozenset[str]:
        if self._dtype == torch.float32:  # PyTorch's convolutions have fewer digits there (TF32)
            return frozenset()
        return self._program.dense_where_faster(image, workspace, seconds)

    def _restore_on_gpu(self, image: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():  # the caller's graph owns all memory that is used
            return self._program(image, self._workspace(), self._dense or ())
        key = self._key(image)
        known = self._sizes.pop(key, None)
        cache = self._sizes[key] = known or _SizeCache(self._workspace())
        while len(self._sizes) > _MAX_SIZES:
            self._sizes.popitem(last=False)
        dense = self._dense
        if dense is None:
            dense = self._choose(self._dense_where_faster(image, cache.workspace))
        if known is None:  # this run compiles; one image alone is not worth a graph
            return self._run(image, cache.workspace, dense)
        if cache.graph is None and cache.room:
            self._record(cache, image, dense)
        if cache.graph is None:
            return self._program(image, cache.workspace, dense)
        assert cache.x is not None and cache.y is not None
        cache.x.copy_(image)
        cache.graph.replay()
        return cache.y.clone()

    def _run(self, image: Tensor, workspace: Workspace, dense: frozenset[str]) -> Tensor:
        """Restore an image; the first one tells whether the precision holds the network's features."""
        if self._is_checked:
            return self._program(image, workspace, dense)
        overflowing: list[str] = []
        result = self._program(image, workspace, dense, overflowing)
        self._is_checked = True
        if overflowing:
            kind = str(self._dtype).removeprefix("torch.")
            warnings.warn(
                f"features exceed what {kind} holds ({torch.finfo(self._dtype).max:g}) in {len(overflowing)}"
                f" steps, first in {overflowing[0]}; the result may be wrong: use the precision bfloat16",
                stacklevel=2,
            )
        return result

    def _record(self, cache: _SizeCache, image: Tensor, dense: frozenset[str]) -> None:
        """Record the launches for an image of this size as a graph, if there is memory for it."""
        cache.x, graph = image.clone(), torch.cuda.CUDAGraph()
        try:
            with capturing(graph):
                cache.y = self._program(cache.x, cache.workspace, dense)
            cache.graph = graph
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            cache.x, cache.room = None, False
