"""Export a ticket to ONNX: the dense network, for programs that know nothing of sparse ones."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.runtime.padding import pad_axis
from mirl_sparse.tickets import find_ticket, load_network

TOLERANCE = 1e-5  # of ONNX Runtime's result against PyTorch's, values in [0, 1]
_OPSET = 18
_MOST_BYTES = 2**31 - 1  # of a protobuf message: ONNX would need a second file for the weights
_SIZES = ((1, 37, 50), (2, 16, 31))  # batch, height, width of the images that the two are compared on


def export_onnx(source: str | Path, target: str | Path) -> int:
    """Write the network of a ticket as an ONNX model.

    The model takes ``image``, (batch, 3, height, width) float32 in [0, 1], RGB, of any size from 1x1, and
    gives ``restored``, of the same shape, not clipped. It pads the image itself. It holds zeros where weights
    are pruned, so it runs as slowly as a dense network. ONNX Runtime runs it before it is written.

    Args:
        source: As for `mirl_sparse.SparseRestorer.from_pretrained`, or a checkpoint file.
        target: The model; another file than the ticket.

    Returns:
        The size of the model in bytes.

    Raises:
        UserError: If the ticket cannot be read, the model would be larger than 2 GiB, or ONNX Runtime's
            results differ by more than `TOLERANCE`; nothing is written then.
        ModuleNotFoundError: If onnx, onnxscript or onnxruntime is missing (extra ``onnx``).
        OSError: If the model cannot be written.
    """
    import onnxruntime  # noqa: F401  # before the minute that the export takes
    import onnxscript  # noqa: F401

    file, target = find_ticket(source), Path(target)
    if target.is_dir():
        raise UserError(f"{target}: is a folder; give a file as -o")
    if target.exists() and target.samefile(file):
        raise UserError(f"{target}: is the ticket itself; give another -o")
    network = _AnySize(load_network(file)).eval().requires_grad_(False)
    if (size := sum(4 * p.numel() for p in network.parameters())) > _MOST_BYTES:
        raise UserError(f"{file}: its weights take {size / 1e9:.1f} GB; an ONNX file holds at most 2.1 GB")
    data = _exported(network)
    if not (difference := _difference(network, data)) <= TOLERANCE:
        raise UserError(
            f"{file}: ONNX Runtime's result differs from PyTorch's by {difference:.1e}; expected at most"
            f" {TOLERANCE:.0e}, so nothing was written"
        )
    write_whole(target, data)
    return len(data)


class _AnySize(nn.Module):
    """Pad images to the sides that a network takes, and cut the result."""

    def __init__(self, network: PromptIR) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        multiple = self.network.config.multiple
        height, width = image.shape[2:]
        padded = image
        for axis, length in ((2, height), (3, width)):
            # All positive: ONNX's division of integers rounds towards zero.
            padded = pad_axis(padded, axis, (length + multiple - 1) // multiple * multiple)
        return self.network(padded)[:, :, :height, :width]


def _exported(network: nn.Module) -> bytes:
    """Return the network as an ONNX model for images (B, 3, H, W) of any size."""
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with _silenced():
        program = torch.onnx.export(
            network,
            (torch.rand(2, 3, 37, 50),),  # 0 and 1 would be taken for constants
            dynamo=True,
            input_names=["image"],
            output_names=["restored"],
            dynamic_shapes=(sizes,),
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep the exporter from printing what helps its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _difference(network: nn.Module, data: bytes) -> float:
    """Return the largest difference of ONNX Runtime's results from PyTorch's, on images of two sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    differences = []
    for batch, height, width in _SIZES:
        image = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = network(image).numpy()
        (restored,) = session.run(None, {"image": image.numpy()})
        if restored.shape != expected.shape:
            raise UserError(f"ONNX Runtime's result is {restored.shape}; expected {expected.shape}")
        differences.append(float(np.abs(restored - expected).max()))
    return max(differences)
