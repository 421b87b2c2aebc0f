"""Dense against sparse in one process: every dense configuration at its best, runs interleaved.

The dense network is the ticket's own, zeros included, as it would be run without this package. Each
contender's result is first compared with that network in float64: what is wrong is not timed.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mirl_kernels import _cpu
from mirl_kernels.roofline import measure
from mirl_sparse.engine import Engine
from mirl_sparse.errors import UserError
from mirl_sparse.network import PromptIR
from mirl_sparse.restorer import SparseRestorer

# Largest difference from float64, values in [0, 1]. The dense network is given more: its float32 sums over
# all pixels of a large image lose digits that the sparse kernels, which sum in float64, keep.
TOLERANCE, DENSE_TOLERANCE = 1e-4, 1e-2
SPARSE = "sparse cpu"


class Allocator:
    """glibc's malloc, as it comes or tuned for large tensors, switched within the process.

    As it comes, it hands large tensors back to the system when they are freed, and touching them anew
    at every call costs a dense network more than its arithmetic. Elsewhere nothing can be switched.
    """

    _TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of <malloc.h>

    def __init__(self) -> None:
        glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
        self._libc = ctypes.CDLL(None) if glibc else None

    def tune(self) -> bool:
        """Keep all memory in the process; whether that was possible."""
        if self._libc is None:
            return False
        return bool(self._libc.mallopt(self._MMAP_MAX, 0) and self._libc.mallopt(self._TRIM_THRESHOLD, -1))

    def untune(self) -> None:
        """What glibc settles at by itself once large tensors have been freed: its greatest dynamic thresholds."""
        assert self._libc is not None
        self._libc.mallopt(self._MMAP_MAX, 65536)
        self._libc.mallopt(self._MMAP_THRESHOLD, 32 << 20)
        self._libc.mallopt(self._TRIM_THRESHOLD, 64 << 20)
        self._libc.malloc_trim(0)


@dataclass(frozen=True)
class Contender:
    """A way to run the network: ``call`` restores the image once."""

    name: str
    call: Callable[[], Tensor]
    stock_allocator: bool = False


def _contenders(network: nn.Module, sparse: dict[str, nn.Module], image: Tensor, compile: bool, peers: bool,
                tuned: bool) -> list[Contender]:  # fmt: skip
    last = image.contiguous(memory_format=torch.channels_last)
    found = [Contender("dense eager, stock allocator", lambda: network(image), True)] if tuned else []
    found.append(Contender("dense eager", lambda: network(image)))
    found.append(Contender("dense channels_last", lambda: network(last)))
    if compile:
        import torch._inductor.config as inductor

        inductor.freezing = True
        for name, x in (("dense compiled", image), ("dense compiled channels_last", last)):
            compiled: nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]
            found.append(Contender(name, lambda compiled=compiled, x=x: compiled(x)))  # type: ignore[misc]
    found += _peers(network, image) if peers else ()
    for name, module in sparse.items():
        found.append(Contender(name, lambda module=module: module(image)))  # type: ignore[misc]
    return found


def _peers(network: nn.Module, image: Tensor) -> list[Contender]:
    """The same network in the inference engines that are installed, given all of PyTorch's threads."""
    found: list[Contender] = []
    numpy, threads = image.numpy(), torch.get_num_threads()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of tracing: it says that the size is fixed
        try:
            import onnxruntime

            path = str(Path(folder, "network.onnx"))
            try:
                torch.onnx.export(network, (image,), path, dynamo=False, opset_version=17, input_names=["image"])
            except Exception:  # the old exporter knows fewer operators
                torch.onnx.export(network, (image,), path, dynamo=True, input_names=["image"], verbose=False)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            found.append(
                Contender("dense ONNX Runtime", lambda: torch.from_numpy(session.run(None, {"image": numpy})[0]))
            )
        except Exception as error:  # not installed, or an operator that it does not know
            _left_out("dense ONNX Runtime", error)
        try:
            import openvino

            model = openvino.convert_model(network, example_input=image, input=list(image.shape))
            compiled = openvino.Core().compile_model(
                model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
            )
            request = compiled.create_infer_request()
            found.append(Contender("dense OpenVINO", lambda: torch.from_numpy(request.infer([numpy])[0])))
        except Exception as error:
            _left_out("dense OpenVINO", error)
    return found


def _left_out(name: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, ImportError):
        reason = "not installed: pip install 'mirl-sparse[peers]'"
    print(f"{name}: left out ({reason})", file=sys.stderr)


def _first_calls(contenders: list[Contender], expected: Tensor) -> dict[str, dict[str, float]]:
    """Each contender's first call, which compiles or packs: its seconds and its difference from
    ``expected``, relative to that where it exceeds 1. A compiled one that cannot run here is left out with a line that
    says why."""
    scale = max(1.0, expected.abs().max().item())
    found = {}
    for contender in contenders:
        begin = time.perf_counter()
        try:
            result = contender.call()
        except Exception as error:  # no compiler, or a PyTorch without one for this processor
            if "compiled" not in contender.name:
                raise
            _left_out(contender.name, error)
            continue
        seconds = time.perf_counter() - begin
        difference = (result - expected).abs().max().item() / scale
        tolerance = DENSE_TOLERANCE if contender.name.startswith("dense") else TOLERANCE
        if not difference <= tolerance:
            raise UserError(
                f"{contender.name} differs from the expected result by {difference:.1e}; expected at most"
                f" {tolerance:.0e}, so nothing is timed"
            )
        found[contender.name] = {"first_call": seconds, "difference": difference}
    return found


def processor() -> str:
    """The processor's name, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine())


def bench(network: PromptIR, image: Tensor, runs: int = 7, compile: bool = True, peers: bool = True) -> dict[str, Any]:
    """`compare` a ticket's network on ``image`` (B, 3, H, W), H and W multiples of 8, with `SparseRestorer`; differences are
    from the network in float64. The sparse one's `profile` is part of the result."""
    with torch.no_grad():
        expected = deepcopy(network).double()(image.double())
    sparse: dict[str, nn.Module] = {SPARSE: SparseRestorer(network, "cpu")}
    found = compare(network, sparse, image, expected, runs, compile, peers)
    return found | {"profile": profile(network, image, runs)}


@torch.no_grad()
def compare(dense: nn.Module, sparse: dict[str, nn.Module], image: Tensor, expected: Tensor, runs: int = 7,
            compile: bool = True, peers: bool = True) -> dict[str, Any]:  # fmt: skip
    """Time a dense network in every configuration, and sparse ones, on ``image``, ``runs`` times, interleaved.

    Returns per contender the median, 20% and 80% percentiles and the first call in seconds, and the largest
    difference from ``expected``; which dense and which sparse one are fastest, and the ratios of the medians to
    the latter; and what it all was measured on. UserError when a sparse difference is above 1e-4.
    """
    allocator = Allocator()
    tuned = allocator.tune()
    contenders = _contenders(dense, sparse, image, compile, peers, tuned)
    first = _first_calls(contenders, expected)
    contenders = [c for c in contenders if c.name in first]
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for _ in range(runs):
        for contender in contenders:
            time.sleep(0.05)  # the threads of the one before wait for more work a while, and would be in the way
            if contender.stock_allocator:
                allocator.untune()
            begin = time.perf_counter()
            contender.call()
            times[contender.name].append(time.perf_counter() - begin)
            if contender.stock_allocator:
                allocator.tune()
                contender.call()  # touches the memory that the others find
    rows = {}
    for name, values in times.items():
        p20, median, p80 = np.percentile(values, (20, 50, 80)).tolist()
        rows[name] = {"median": median, "p20": p20, "p80": p80, **first[name]}
    strongest = min((n for n in rows if n not in sparse), key=lambda n: rows[n]["median"])
    fastest = min((n for n in rows if n in sparse), key=lambda n: rows[n]["median"])
    ratios = {n: row["median"] / rows[fastest]["median"] for n, row in rows.items()}
    return {
        "shape": list(image.shape),
        "runs": runs,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "isa": _cpu.isa(),
        "torch": torch.__version__,
        "allocator": "tuned" if tuned else "default",
        "rows": rows,
        "ratios": ratios,
        "strongest_dense": strongest,
        "fastest_sparse": fastest,
        "speedup": ratios[strongest],
    }


@torch.no_grad()
def profile(network: PromptIR, image: Tensor, runs: int = 7) -> dict[str, Any]:
    """Where the sparse network's time goes, against the roofline of this machine as measured just now.

    Per step the median seconds of ``runs``, its multiply-adds by surviving weights, the bytes that a fused
    schedule cannot help moving, the seconds that these two allow at best, and the fraction of that limit
    that is reached; and the same in total.
    """
    machine, engine = measure(), Engine(network)
    engine(image)
    measured = [engine.profile(image) for _ in range(runs)]
    rows = []
    for step in zip(*measured, strict=True):
        name, op, macs, moved, _ = step[0]
        seconds, limit = float(np.median([s.seconds for s in step])), machine.limit(macs, moved)
        rows.append({"name": name, "op": op, "seconds": seconds, "macs": macs, "bytes": moved, "limit": limit})
    total = {k: sum(row[k] for row in rows) for k in ("seconds", "macs", "bytes", "limit")}
    return {"gflops_peak": machine.flops / 1e9, "gbytes_peak": machine.bandwidth / 1e9, "steps": rows,
            **total, "fraction": total["limit"] / total["seconds"]}  # fmt: skip
