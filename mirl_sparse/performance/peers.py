"""Ways to run a dense network on a CPU, each at its best: what a sparse one has to be compared with.

Every maker in `DENSE` takes a network and an image (B, C, H, W) and returns what restores that image once, by all of PyTorch's
threads. It raises ImportError where the engine is not installed, and whatever the engine raises where it cannot run the network.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], Tensor]
Maker = Callable[[nn.Module, Tensor], Call]


def _eager(network: nn.Module, image: Tensor) -> Call:
    return lambda: network(image)


def in_channels_last(network: nn.Module, image: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy of both whose images and convolutions' weights are laid out so."""
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


def _needs_bfloat16() -> None:
    """RuntimeError where it would be emulated, many times slower than float32."""
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        raise RuntimeError("this processor has no bfloat16 instructions")


def _compiled_bfloat16(network: nn.Module, image: Tensor) -> Call:
    _needs_bfloat16()
    image = image.bfloat16().contiguous(memory_format=torch.channels_last)
    # By vectors of 512 bits what is compiled for attention gives NaN (PyTorch 2.13); products and convolutions are oneDNN's anyway.
    call = _compiled(deepcopy(network).bfloat16(), image, **{"cpp.simdlen": 256})
    return lambda: call().float()


@contextlib.contextmanager
def _onnx(network: nn.Module, image: Tensor) -> Iterator[str]:
    """The network as an ONNX file, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: it says that the size is fixed
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
    _needs_bfloat16()
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

    if torch.get_num_threads() != os.cpu_count():
        raise RuntimeError(f"ExecuTorch uses all processors, this compares {torch.get_num_threads()} threads")
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
DENSE: dict[str, Maker] = {
    STOCK: _eager,
    "dense eager": _eager,
    "dense channels_last": _channels_last,
    "dense compiled": _compiled,
    "dense compiled channels_last": _compiled_channels_last,
    "dense compiled bfloat16": _compiled_bfloat16,
    "dense ONNX Runtime": _onnx_runtime,
    "dense OpenVINO": _openvino,
    "dense OpenVINO bfloat16": _openvino_bfloat16,
    "dense MNN": _mnn,
    "dense XNNPACK": _xnnpack,
}
COMPILED = tuple(
    name for name in DENSE if "compiled" in name
)  # these take a minute or more before their first image
ENGINES = (
    "dense ONNX Runtime",
    "dense OpenVINO",
    "dense OpenVINO bfloat16",
    "dense MNN",
    "dense XNNPACK",
)  # installed apart
EAGER = tuple(name for name in DENSE if name not in COMPILED + ENGINES)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What engines in C++ print to standard output goes to standard error: the former may be read by a program."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
