"""Networks written by others, pruned and converted: dense against sparse, each at its best.

    pip install einops torchvision && pip install --no-deps spandrel spandrel_extra_arches
    python benchmarks/networks.py [NAME ...] [--json FILE]

Architectures come from PyPI's spandrel packages, with random weights, of which the largest 10% of every convolution and
linear layer are kept. Each network runs in a process of its own: converted by `mirl_sparse.convert`, compared with the dense one,
then timed, interleaved with the dense one in PyTorch (eager, channels_last, compiled with frozen weights), ONNX Runtime and OpenVINO.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mirl_sparse import bench, convert

DENSITY = 0.10

# Name: where the architecture is, its arguments (spandrel's defaults where none), side and channels of the input.
NETWORKS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "Restormer": ("spandrel_extra_arches.architectures.Restormer", {}, 128, 3),
    "NAFNet": ("spandrel.architectures.NAFNet", {"width": 32, "enc_blk_nums": [2, 2, 4, 8], "middle_blk_num": 12,
                                                 "dec_blk_nums": [2, 2, 2, 2]}, 256, 3),
    "MPRNet": ("spandrel_extra_arches.architectures.MPRNet", {}, 128, 3),
    "SwinIR": ("spandrel.architectures.SwinIR", {"img_size": 64, "window_size": 8, "depths": [6, 6, 6, 6],
                                                 "embed_dim": 180, "num_heads": [6, 6, 6, 6], "mlp_ratio": 2,
                                                 "upsampler": ""}, 64, 3),
    "DRUNet": ("spandrel.architectures.DRUNet", {"in_nc": 4, "out_nc": 3}, 256, 4),
    "SCUNet": ("spandrel.architectures.SCUNet", {}, 128, 3),
    "FBCNN": ("spandrel.architectures.FBCNN", {}, 128, 3),
    "ESRGAN": ("spandrel.architectures.ESRGAN", {}, 64, 3),
    "DnCNN": ("spandrel.architectures.DnCNN", {"in_nc": 3, "out_nc": 3}, 256, 3),
    "MIRNet2": ("spandrel_extra_arches.architectures.MIRNet2", {}, 128, 3),
    "RCAN": ("spandrel.architectures.RCAN", {}, 64, 3),
    "Uformer": ("spandrel.architectures.Uformer", {}, 128, 3),
    "M3SNet": ("spandrel_extra_arches.architectures.M3SNet", {}, 128, 3),
    "PLKSR": ("spandrel.architectures.PLKSR", {}, 64, 3),
}  # fmt: skip


def _import(module: str) -> Any:
    # PyPI's torchvision is built for CUDA; of it, these packages use only what needs no compiled op.
    for op in ("nms", "qnms"):
        torch.library.define(f"torchvision::{op}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module(module)


@torch.no_grad()
def network(name: str) -> nn.Module:
    """A network of random weights, pruned layer by layer."""
    module, arguments, _, _ = NETWORKS[name]
    torch.manual_seed(0)
    made: nn.Module = getattr(_import(module), module.rsplit(".", 1)[1])(**arguments).eval()
    for layer in made.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            dropped = round((1 - DENSITY) * layer.weight.numel())
            if dropped:
                layer.weight[layer.weight.abs() <= layer.weight.abs().flatten().kthvalue(dropped).values] = 0
    return made
