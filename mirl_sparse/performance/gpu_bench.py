"""Benchmark a ticket on a GPU: dense against sparse, timed by events, beside what was predicted."""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.choices import BackendName
from mirl_sparse.errors import UserError
from mirl_sparse.performance.oracle import expected
from mirl_sparse.performance.peers import Kind, Peer, in_channels_last
from mirl_sparse.performance.predict import Prediction, predict
from mirl_sparse.performance.timing import Call, Turns, TurnsResult
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.runtime.tuning import Tuning

SPARSE = "sparse triton"
TOLERANCE = 2e-2  # of float16, as `comparison.TOLERANCE`
# How drivers name the GPUs of `mirl_kernels.core.triton.model.GPUS`.
NAMES = {
    "A100 40GB": r"A100-\w+-40GB",
    "H100 SXM": r"H100 80GB HBM3",
    "H200": r"H200",
    "RTX 4090": r"RTX 4090$",
    "L4": r"\bL4$",
    "MI300X": r"MI300X",
}
_CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,driver_version"


def _eager(network: nn.Module, image: Tensor) -> Call:
    return lambda: network(image).float()


def _eager_half(network: nn.Module, image: Tensor) -> Call:
    return _eager(_half(network), image.half())


def _channels_last_half(network: nn.Module, image: Tensor) -> Call:
    return _eager(*in_channels_last(_half(network), image.half()))


def _compiled(network: nn.Module, image: Tensor) -> Call:
    compiled: Callable[[Tensor], Tensor] = torch.compile(network, mode="max-autotune", dynamic=False)
    return lambda: compiled(image).float()


def _compiled_half(network: nn.Module, image: Tensor) -> Call:
    return _compiled(_half(network), image.half())


def _compiled_channels_last_half(network: nn.Module, image: Tensor) -> Call:
    return _compiled(*in_channels_last(_half(network), image.half()))


def _half(network: nn.Module) -> nn.Module:
    return deepcopy(network).half()


# The first is what PyTorch does by default; the others are float16. The compiled ones replay a graph, as the
# sparse network does.
DENSE: dict[str, Peer] = {
    "dense eager float32": Peer(_eager),
    "dense eager": Peer(_eager_half),
    "dense channels_last": Peer(_channels_last_half),
    "dense compiled": Peer(_compiled_half, Kind.COMPILED),
    "dense compiled channels_last": Peer(_compiled_channels_last_half, Kind.COMPILED),
}


@dataclass(frozen=True)
class GpuBenchResult(TurnsResult):
    """Hold the result of a benchmark on a GPU.

    Attributes:
        gpu: Name of the GPU.
        clocks: Its clocks in MHz at work, as far as its driver's tool tells them.
        shape: Shape of the image.
        torch: Version of PyTorch.
        predicted: Prediction for this GPU, or None where none is made for it.
    """

    gpu: str
    clocks: str
    shape: tuple[int, ...]
    torch: str
    predicted: Prediction | None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        return {
            "gpu": self.gpu,
            "clocks": self.clocks,
            "shape": list(self.shape),
            "torch": self.torch,
            **super().to_dict(),
            "predicted": asdict(self.predicted) if self.predicted else None,
        }


@torch.no_grad()
def bench_on_gpu(
    network: PromptIR, image: Tensor, runs: int = 7, compile: bool = True, tuning: Tuning | None = None
) -> GpuBenchResult:
    """Compare the Triton kernels with the dense network on the same GPU, both in float16.

    Args:
        network: A ticket's network.
        image: (B, 3, H, W) float32, H and W as the network takes them.
        runs: Number of rounds.
        compile: Whether to include torch.compile.
        tuning: Settings that the sparse network runs fastest by on this GPU, if they were searched for.

    Raises:
        UserError: There is no GPU, no dense network runs on it, or the sparse network restores something
            else.
    """
    if not torch.cuda.is_available():
        raise UserError(
            "--backend triton measures a GPU, and PyTorch sees none; mirl-sparse inspect TICKET --gpus"
            " predicts"
        )
    return _bench(network, image, runs, compile, torch.device("cuda"), tuning)


class EventTurns(Turns):
    """Time contenders by the GPU's own clock, between two events in the stream of its work."""

    settling = 2  # a CUDA graph is recorded by the second call, or by the one after

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def seconds(self, call: Call, repeats: int = 1) -> float:
        """Return how many seconds the GPU works on ``repeats`` calls together."""
        if self._device.type != "cuda":  # the interpreter
            return super().seconds(call, repeats)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def _bench(
    network: PromptIR,
    image: Tensor,
    runs: int,
    compile: bool,
    device: torch.device,
    tuning: Tuning | None = None,
) -> GpuBenchResult:
    right = expected(network, image).to(device)
    network, image = deepcopy(network).to(device), image.to(device)
    turns = EventTurns(device)
    _admit_dense(turns, network, image, right, compile)
    restorer = SparseRestorer(network, BackendName.TRITON, tuning=tuning)
    turns.admit(SPARSE, partial(partial, restorer, image), right, TOLERANCE)
    if SPARSE not in turns.times:
        raise UserError(f"{SPARSE} {turns.left_out[SPARSE]}, so nothing is timed")
    for _ in range(runs):
        turns.round()
    gpu, clocks = _gpu(device, lambda: restorer(image))
    return GpuBenchResult(
        **vars(turns.compared(tuple(DENSE))),
        gpu=gpu,
        clocks=clocks,
        shape=tuple(image.shape),
        torch=torch.__version__,
        predicted=_predicted(network, image, gpu),
    )


def _admit_dense(turns: Turns, network: PromptIR, image: Tensor, right: Tensor, compile: bool) -> None:
    for name, peer in DENSE.items():
        if peer.kind is Kind.COMPILED and not compile:
            continue
        try:
            turns.admit(name, partial(peer, network, image), right, TOLERANCE)
        except Exception as error:  # where there is no compiler or no memory, PyTorch raises nearly anything
            turns.left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    if not turns.times:
        reasons = "; ".join(f"{name} {reason}" for name, reason in turns.left_out.items())
        raise UserError(f"no dense network runs here to compare with: {reasons}")


def _gpu(device: torch.device, busy: Call) -> tuple[str, str]:
    """Return the GPU's name and its clocks while it works, as far as its driver's tool tells them."""
    if device.type != "cuda":
        return "none: Triton's interpreter", "-"
    name, tool = torch.cuda.get_device_name(device), shutil.which("nvidia-smi")
    if tool is None:
        return name, "not known: nvidia-smi is not there"
    # By its UUID: CUDA_VISIBLE_DEVICES counts otherwise.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    number = torch.cuda.current_device() if uuid is None else f"GPU-{uuid}"
    command = [tool, f"--query-gpu={_CLOCKS}", "--format=csv,noheader", f"--id={number}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as query:
        while query.poll() is None:
            busy()
            torch.cuda.synchronize(device)
        answer = query.communicate()[0]
    return name, f"{_CLOCKS}: {answer.strip()}"


def _predicted(network: PromptIR, image: Tensor, gpu: str) -> Prediction | None:
    known = known_gpu(gpu)
    if known is None:
        return None
    try:
        return predict(network, (image.shape[0], *image.shape[2:]), gpus=[known])[0]
    except Exception as error:  # a compiler may fail in any way; times that were measured must not be lost
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"no prediction for {known}: {reason}", stacklevel=2)
        return None


def known_gpu(name: str) -> str | None:
    """Return the GPU of `mirl_kernels.core.triton.model.GPUS` that a driver's name means, or None."""
    return next((known for known, pattern in NAMES.items() if re.search(pattern, name)), None)
