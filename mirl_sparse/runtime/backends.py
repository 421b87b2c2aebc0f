"""List the backends by name: where they run, their precisions, and what makes their engines."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.choices import BackendName
from mirl_sparse.errors import UserError
from mirl_sparse.runtime import gpu
from mirl_sparse.runtime.cpu import CpuEngine
from mirl_sparse.runtime.engine import Engine
from mirl_sparse.runtime.reference import ReferenceEngine
from mirl_sparse.runtime.triton import TritonEngine
from mirl_sparse.runtime.triton_network import PRECISIONS
from mirl_sparse.runtime.tuning import Tuning

AUTO = BackendName.AUTO.value  # the C++ kernels where they were built, else the reference


@dataclass(frozen=True)
class Backend:
    """Tell the restorer what it must know of a backend.

    Attributes:
        make_engine: Makes an engine, from a network, a precision and a tuning.
        check: Raises BackendError where the backend cannot run.
        precisions: The precisions of activations, the default one first.
        packs: Whether its engines hold a packed copy of the weights, so that changed weights need a new
            engine.
        tunable: Whether its engines use a tuning.
        device: Function that returns the device that networks are loaded to; None if they stay where they
            are.
    """

    make_engine: Callable[[PromptIR, str, Tuning | None], Engine]
    check: Callable[[], object] = lambda: None
    precisions: tuple[str, ...] = ("float32",)
    packs: bool = True
    tunable: bool = False
    device: Callable[[], torch.device] | None = None


BACKENDS: dict[str, Backend] = {
    BackendName.CPU.value: Backend(
        lambda network, precision, tuning: CpuEngine(network, precision),
        cpu.load_library,
        precisions=("float32", "bfloat16"),
    ),
    BackendName.REFERENCE.value: Backend(
        lambda network, precision, tuning: ReferenceEngine(network), packs=False
    ),
    BackendName.TRITON.value: Backend(
        TritonEngine, gpu.check_gpu, precisions=tuple(PRECISIONS), tunable=True, device=gpu.device
    ),
}


def choose_backend(name: str) -> str:
    """Return the name of the backend to use; "auto" becomes "cpu" or, with a warning, "reference".

    Raises:
        UserError: If there is no backend of that name.
        BackendError: If the backend cannot run here.
    """
    if name not in (AUTO, *BACKENDS):
        raise UserError(f"backend is {name!r}; expected one of {', '.join((AUTO, *BACKENDS))}")
    if name == AUTO:
        try:
            cpu.load_library()
        except BackendError as error:
            warnings.warn(f"running the slower reference backend: {error}", stacklevel=3)
            return BackendName.REFERENCE.value
        return BackendName.CPU.value
    BACKENDS[name].check()
    return name


def choose_precision(backend: str, precision: str | None) -> str:
    """Return the precision of activations to use on a backend; None becomes the backend's default.

    Raises:
        UserError: If the backend does not know the precision.
    """
    known = BACKENDS[backend].precisions
    if not precision:
        return known[0]
    if precision not in known:
        raise UserError(f"precision is {precision!r} on backend {backend!r}; expected {', '.join(known)}")
    return precision
