"""Dense against sparse on a GPU: what `bench` is on processors, with events of the GPU, beside what was predicted for it.

No GPU has run this yet; the interpreter has, on a tiny network.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.errors import UserError
from mirl_sparse.performance.bench import Turns, expected
from mirl_sparse.performance.peers import Call, in_channels_last
from mirl_sparse.performance.predict import predict
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.runtime.triton import Tuning

SPARSE = "sparse triton"
_TOLERANCE = 2e-2  # of float16, as in `bench.TOLERANCE`
# How drivers call those of `mirl_kernels.core.triton.model.GPUS`.
_NAMES = {
    "A100 40GB": r"A100-\w+-40GB",
    "H100 SXM": r"H100 80GB HBM3",
    "RTX 4090": r"RTX 4090$",
    "L4": r"\bL4$",
    "MI300X": r"MI300X",
}
_CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,power.limit,driver_version"


def _eager(network: nn.Module, image: Tensor) -> Call:
    return lambda: network(image).float()


def _compiled(network: nn.Module, image: Tensor) -> Call:
    compiled: Callable[[Tensor], Tensor] = torch.compile(network, mode="max-autotune", dynamic=False)
    return lambda: compiled(image).float()


def _half(network: PromptIR) -> PromptIR:
    return deepcopy(network).half()


# What is first is what one has who installs PyTorch and does nothing else; the others are float16. "compiled" replays a graph,
# as the sparse network does.
DENSE: dict[str, Callable[[PromptIR, Tensor], Call]] = {
    "dense eager float32": _eager,
    "dense eager": lambda network, image: _eager(_half(network), image.half()),
    "dense channels_last": lambda network, image: _eager(*in_channels_last(_half(network), image.half())),
    "dense compiled": lambda network, image: _compiled(_half(network), image.half()),
    "dense compiled channels_last": lambda network, image: _compiled(
        *in_channels_last(_half(network), image.half())
    ),
}


class _Events(Turns):
    """Contenders timed by the GPU's own clock, between two events in the stream of its work."""

    settling = 2  # a CUDA graph is recorded by the second call, or by the one after

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def seconds(self, call: Call, repeats: int = 1) -> float:
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


def _gpu(device: torch.device, busy: Call) -> dict[str, Any]:
    """The GPU's name and, while it works, its clocks in MHz, as far as its driver's tool says so."""
    if device.type != "cuda":
        return {"gpu": "none: Triton's interpreter", "clocks": "-"}
    found = {"gpu": torch.cuda.get_device_name(device), "clocks": "not known: nvidia-smi is not there"}
    if tool := shutil.which("nvidia-smi"):
        uuid = getattr(
            torch.cuda.get_device_properties(device), "uuid", None
        )  # CUDA_VISIBLE_DEVICES counts otherwise
        which = torch.cuda.current_device() if uuid is None else f"GPU-{uuid}"
        command = [tool, f"--query-gpu={_CLOCKS}", "--format=csv,noheader", f"--id={which}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as asked:
            while asked.poll() is None:
                busy()
                torch.cuda.synchronize(device)
            said = asked.communicate()[0]
        found["clocks"] = f"{_CLOCKS}: {said.strip()}"
    return found


@torch.no_grad()
def bench_on_gpu(
    network: PromptIR, image: Tensor, runs: int = 7, compile: bool = True, tuning: Tuning | None = None
) -> dict[str, Any]:
    """Compare `SparseRestorer` on the Triton kernels, by a ``tuning`` where there is one, with the dense network on the same GPU, both in
    float16, on ``image`` (B, 3, H, W), H and W multiples of 8: `Turns.compared` after so many rounds, the GPU and its clocks, and ``predicted``, the
    `predict.Prediction` for it, None if it is none that predictions are made for. UserError when no GPU is there, or the
    sparse network restores something else."""
    if not torch.cuda.is_available():
        raise UserError(
            "--backend triton measures a GPU, and PyTorch sees none; mirl-sparse inspect TICKET --gpus predicts"
        )
    return _bench(network, image, runs, compile, torch.device("cuda"), tuning)


def _bench(
    network: PromptIR,
    image: Tensor,
    runs: int,
    compile: bool,
    device: torch.device,
    tuning: Tuning | None = None,
) -> dict[str, Any]:
    right = expected(network, image).to(device)
    network, image = deepcopy(network).to(device), image.to(device)
    turns = _Events(device)
    for name, make in DENSE.items():
        if "compiled" in name and not compile:
            continue
        try:
            turns.admit(name, partial(make, network, image), right, _TOLERANCE)
        except Exception as error:  # no compiler, no memory
            turns.left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    if not turns.times:
        reasons = "; ".join(f"{name} {reason}" for name, reason in turns.left_out.items())
        raise UserError(f"no dense network runs here to compare with: {reasons}")
    restorer = SparseRestorer(network, "triton", tuning=tuning)
    turns.admit(SPARSE, partial(partial, restorer, image), right, _TOLERANCE)
    if SPARSE not in turns.times:
        raise UserError(f"{SPARSE} {turns.left_out[SPARSE]}, so nothing is timed")
    for _ in range(runs):
        turns.round()
    machine = _gpu(device, lambda: restorer(image))
    known = next((name for name, pattern in _NAMES.items() if re.search(pattern, machine["gpu"])), None)
    predicted = predict(network, (image.shape[0], *image.shape[2:]), gpus=[known])[0] if known else None
    return {**machine, "shape": list(image.shape), "torch": torch.__version__, **turns.compared(tuple(DENSE)),
            "predicted": vars(predicted) if predicted else None}  # fmt: skip
