"""Run a dense network on a CPU in every strong way: what a sparse one has to be compared with.

Each way in `DENSE` is a `Peer`. It takes a network and an image (B, C, H, W) and returns a call that restores
that image once, on all of PyTorch's threads.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mirl_sparse.performance.timing import Call

Maker = Callable[[nn.Module, Tensor], Call]
NOT_INSTALLED = "not installed: run pip install '.[peers]' in the clone of mirl-sparse"


class Kind(Enum):
    """List the kinds of ways to run a dense network.

    Attributes:
        EAGER: PyTorch, operator by operator.
        COMPILED: PyTorch with torch.compile, which takes a minute or more before the first image.
        ENGINE: Another inference engine, which is installed apart.
    """

    EAGER = "eager"
    COMPILED = "compiled"
    ENGINE = "engine"


@dataclass(frozen=True)
class Peer:
    """Describe one way to run a dense network.

    Attributes:
        make: Builds the call for a network and an image.
        kind: Kind of the way.
        modules: Packages that must be installed.
        bfloat16: Whether it computes in bfloat16.
        all_processors: Whether it always uses all processors, whatever PyTorch's threads are.
    """

    make: Maker
    kind: Kind = Kind.EAGER
    modules: tuple[str, ...] = ()
    bfloat16: bool = False
    all_processors: bool = False

    def unavailable(self) -> str | None:
        """Return why this way cannot run here, or None where it can."""
        if any(find_spec(module) is None for module in self.modules):
            return NOT_INSTALLED
        if self.bfloat16 and not _has_bfloat16():
            return "this processor has no bfloat16 instructions"
        if self.all_processors and torch.get_num_threads() != os.cpu_count():
            return f"it uses all processors, this compares {torch.get_num_threads()} threads"
        return None

    def __call__(self, network: nn.Module, image: Tensor) -> Call:
        """Return a call that restores an image once.

        Args:
            network: A dense network.
            image: (B, C, H, W) float32.

        Raises:
            RuntimeError: This way is unavailable here. An engine that cannot run the network raises its own
                exceptions.
        """
        if reason := self.unavailable():
            raise RuntimeError(reason)
        return self.make(network, image)


def _has_bfloat16() -> bool:
    """Return whether bfloat16 is not emulated, which is many times slower than float32."""
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def _eager(network: nn.Module, image: Tensor) -> Call:
    return lambda: network(image)


def in_channels_last(network: nn.Module, image: Tensor) -> tuple[nn.Module, Tensor]:
    """Return a copy of a network and an image whose images and convolution weights are in channels_last."""
    copy = deepcopy(network)
    for weight in (*copy.parameters(), *copy.buffers()):
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return copy, image.contiguous(memory_format=torch.channels_last)


def _channels_last(network: nn.Module, image: Tensor) -> Call:
    return _eager(*in_channels_last(network, image))


def _compiled(network: nn.Module, image: Tensor, **options: Any) -> Call:
    import torch._inductor.config as inductor

    inductor.freezing = True
    compiled: nn.Module = torch.compile(network, dynamic=False, options=options)  # type: ignore[assignment]
    return lambda: compiled(image)


def _compiled_channels_last(network: nn.Module, image: Tensor) -> Call:
    return _compiled(*in_channels_last(network, image))


def _compiled_bfloat16(network: nn.Module, image: Tensor) -> Call:
    image = image.bfloat16().contiguous(memory_format=torch.channels_last)
    # With vectors of 512 bits, compiled attention gives NaN (PyTorch 2.13); products and convolutions are
    # oneDNN's anyway.
    call = _compiled(deepcopy(network).bfloat16(), image, **{"cpp.simdlen": 256})
    return lambda: call().float()


@contextlib.contextmanager
def _onnx(network: nn.Module, image: Tensor) -> Iterator[str]:
    """Yield the path of the network as an ONNX file, which is removed at the end."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns that the size is fixed
        path = str(Path(folder, "network.onnx"))
        names: dict[str, Any] = {"input_names": ["image"], "output_names": ["restored"]}
        try:
            torch.onnx.export(network, (image,), path, dynamo=False, opset_version=17, **names)
        except Exception:  # the old exporter knows fewer operators
            torch.onnx.export(network, (image,), path, dynamo=True, verbose=False, **names)
        yield path


def _onnx_runtime(network: nn.Module, image: Tensor) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with _onnx(network, image) as path:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {"image": image.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def _openvino(network: nn.Module, image: Tensor, precision: str = "f32") -> Call:
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # OpenVINO's own tracing runs the network many times.
        traced = torch.jit.trace(network, image, check_trace=False)
        model = openvino.convert_model(traced, example_input=image, input=list(image.shape))
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()
    return lambda: torch.from_numpy(request.infer([image.numpy()])[0])


def _openvino_bfloat16(network: nn.Module, image: Tensor) -> Call:
    return _openvino(network, image, "bf16")


def _mnn(network: nn.Module, image: Tensor) -> Call:
    import MNN
    from MNN import expr, nn

    # Not MNN.tools.mnnconvert, which calls this, but also installs a package and reports what was converted.
    import _tools  # isort: skip

    with _onnx(network, image) as path:
        _tools.mnnconvert(
            ["", "-f", "ONNX", "--modelFile", path, "--MNNModel", path + ".mnn", "--bizCode", "MNN"]
        )
        manager = nn.create_runtime_manager(
            ({"backend": "CPU", "numThread": torch.get_num_threads(), "precision": "high"},)
        )
        model = nn.load_module_from_file(path + ".mnn", ["image"], ["restored"], runtime_manager=manager)
    source = expr.placeholder(list(image.shape), MNN.expr.NCHW)

    def call() -> Tensor:
        source.write(image.numpy())
        return torch.from_numpy(expr.convert(model.forward([source])[0], expr.NCHW).read().copy())

    return call


def _xnnpack(network: nn.Module, image: Tensor) -> Call:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    exported = torch.export.export(network, (image,))
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    buffer = program.buffer
    loaded = Runtime.get().load_program(buffer)
    method = loaded.load_method("forward")

    def call() -> Tensor:
        assert buffer and loaded  # method reads them, but does not keep them alive
        return method.execute([image])[0]

    return call


STOCK = "dense eager, stock allocator"  # what one has who installs PyTorch and does nothing else
DENSE: dict[str, Peer] = {
    STOCK: Peer(_eager),
    "dense eager": Peer(_eager),
    "dense channels_last": Peer(_channels_last),
    "dense compiled": Peer(_compiled, Kind.COMPILED),
    "dense compiled channels_last": Peer(_compiled_channels_last, Kind.COMPILED),
    "dense compiled bfloat16": Peer(_compiled_bfloat16, Kind.COMPILED, bfloat16=True),
    "dense ONNX Runtime": Peer(_onnx_runtime, Kind.ENGINE, ("onnx", "onnxruntime")),
    "dense OpenVINO": Peer(_openvino, Kind.ENGINE, ("openvino",)),
    "dense OpenVINO bfloat16": Peer(_openvino_bfloat16, Kind.ENGINE, ("openvino",), bfloat16=True),
    "dense MNN": Peer(_mnn, Kind.ENGINE, ("onnx", "MNN")),
    "dense XNNPACK": Peer(_xnnpack, Kind.ENGINE, ("executorch",), all_processors=True),
}


def _names(kind: Kind) -> tuple[str, ...]:
    return tuple(name for name, peer in DENSE.items() if peer.kind is kind)


EAGER, COMPILED, ENGINES = _names(Kind.EAGER), _names(Kind.COMPILED), _names(Kind.ENGINE)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what engines in C++ print to standard output to standard error.

    A program may read standard output.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
