"""Ask the GPU at hand whether the Triton kernels can run on it, and how long it takes for a call.

Where TRITON_INTERPRET=1 is set, the kernels run in Triton's interpreter, on the CPU. Only tests want that.
"""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mirl_kernels.errors import BackendError

_REPEATS = 8  # calls in one measurement
_MEASUREMENTS = 4
_MIN_CAPABILITY = 8, 0
_NO_MEMORY = "out of memory", "alloc_failed"  # in what drivers and libraries say
_CAPTURE_LOCK = threading.Lock()  # one thread of the process captures a graph at a time, on whatever GPU


def interpreting() -> bool:
    """Return whether the kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def device() -> torch.device:
    """Return the device that the kernels run on: the current GPU, or the CPU in Triton's interpreter."""
    return torch.device("cpu" if interpreting() else "cuda")


def check_package() -> None:
    """Raise BackendError unless Triton is installed."""
    try:
        import triton  # noqa: F401
    except ImportError:
        raise BackendError("the kernels for GPUs need the package triton: pip install triton") from None


def check_gpu() -> None:
    """Raise BackendError unless Triton is installed and PyTorch sees a GPU that the kernels can run on."""
    if not torch.cuda.is_available() and not interpreting():
        raise BackendError('backend "triton" runs on GPUs, and PyTorch sees none here; use backend "cpu"')
    if torch.cuda.is_available() and not torch.version.hip:
        major, minor = torch.cuda.get_device_capability()
        if (major, minor) < _MIN_CAPABILITY:
            raise BackendError(
                f'backend "triton" wants a GPU from sm_80 on, this is sm_{major}{minor}; use backend "cpu"'
            )
    check_package()


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """Record what is launched in the context into ``graph``, on a new stream of the current device.

    Other threads may allocate memory meanwhile. The stream is new because the one that PyTorch chooses by
    itself belongs to the device that captured first. No garbage is collected meanwhile: it may hold another
    graph, and freeing that would break the capture.
    """
    with (
        _CAPTURE_LOCK,
        _without_collection(),
        torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"),
    ):
        yield


@contextmanager
def _without_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that it hides, says that a GPU has not enough memory.

    Only PyTorch's allocator raises OutOfMemoryError. The driver, cuBLAS, cuDNN and Triton raise a
    RuntimeError, and the end of a broken capture raises another one over it.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        text = str(cause).lower()
        if isinstance(cause, torch.cuda.OutOfMemoryError) or any(words in text for words in _NO_MEMORY):
            return True
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return False


def seconds(call: Callable[[], Any], replayed: bool = True) -> float:
    """Return how long the current GPU works on what a call launches.

    Args:
        call: The call; it is made once for compilation, and then several times.
        replayed: Whether the launches are replayed as a CUDA graph, which takes no time of the host.
            Otherwise the host launches each kernel, and its time counts where it is the slower one.

    Returns:
        The least of several measurements, in seconds per call; infinity if the GPU has not enough memory. In
        Triton's interpreter, the time of one call.
    """
    if interpreting():
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    def calls() -> None:
        for _ in range(_REPEATS):
            call()

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    measured, run = [], calls
    try:
        call()  # compiles
        if replayed:
            graph = torch.cuda.CUDAGraph()
            with capturing(graph):
                calls()
            run = graph.replay
        for _ in range(_MEASUREMENTS):  # the first replay of a graph prepares it
            start.record()
            run()
            end.record()
            end.synchronize()
            measured.append(float(start.elapsed_time(end)) / 1e3 / _REPEATS)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    return min(measured)
