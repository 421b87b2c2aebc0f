"""Small networks of many architectures, pruned, in the file layouts of their authors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mirl_sparse.architectures.image_network import registry

DENSITY = 0.1
State = dict[str, Tensor]
_MAIN = "spandrel.architectures"
_EXTRA = "spandrel_extra_arches.architectures"


def _prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


# What the authors' trainers write: BasicSR, KAIR, Lightning, DataParallel.
LAYOUTS: dict[str, Callable[[State, Path], object]] = {
    "raw.pth": lambda s, p: torch.save(s, p),
    "legacy.pth": lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False),
    "params.pth": lambda s, p: torch.save({"params": s}, p),
    "params_ema.pth": lambda s, p: torch.save(
        {"params": {k: torch.full_like(v, 7) for k, v in s.items()}, "params_ema": s}, p
    ),
    "state_dict.pth": lambda s, p: torch.save({"epoch": 3, "state_dict": s, "optimizer": {"state": {}}}, p),
    "parallel.pth": lambda s, p: torch.save({"epoch": 3, "state_dict": _prefixed(s, "module.")}, p),
    "lightning.ckpt": lambda s, p: torch.save(
        {
            "pytorch-lightning_version": "2.4.0",
            "state_dict": _prefixed(s, "net_g.") | {"loss.vgg.weight": torch.ones(3)},
        },
        p,
    ),
    "half.pth": lambda s, p: torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in s.items()}, p
    ),
    "raw.safetensors": lambda s, p: save_file({k: v.contiguous().clone() for k, v in s.items()}, p),
}


@dataclass(frozen=True)
class Small:
    """Describe a small network of spandrel.

    Attributes:
        arguments: Arguments of its class beside the defaults.
        layout: The layout of its file.
        package: Where its architecture is.
        kind: Name of its class, where it is not that of the architecture.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    layout: str = "raw.pth"
    package: str = _MAIN
    kind: str = ""


_SWIN = {"depths": [2, 2], "embed_dim": 24, "num_heads": [2, 2], "window_size": 8, "mlp_ratio": 2}
_SWIN |= {"img_size": 32}
NETWORKS = {
    # the fourteen networks of benchmarks/studies/networks.md
    "Restormer": Small(
        {"dim": 16, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}, "params.pth", _EXTRA
    ),
    "NAFNet": Small(
        {"width": 16, "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1]}, "params.pth"
    ),
    "MPRNet": Small(
        {"n_feat": 16, "scale_unetfeats": 8, "scale_orsnetfeats": 8, "num_cab": 2}, "parallel.pth", _EXTRA
    ),
    "SwinIR": Small(_SWIN, "params_ema.pth"),
    "DRUNet": Small({"in_nc": 4, "out_nc": 3, "nc": [16, 16, 32, 32], "nb": 2}, "raw.pth"),
    "SCUNet": Small({"dim": 64, "config": [1] * 7}, "raw.safetensors"),
    "FBCNN": Small({"nc": [16, 16, 32, 512], "nb": 2, "in_nc": 1, "out_nc": 1}, "legacy.pth"),
    "ESRGAN": Small({"num_filters": 16, "num_blocks": 2, "scale": 4}, "params_ema.pth"),
    "DnCNN": Small({"in_nc": 1, "out_nc": 1, "nc": 32, "nb": 17, "act_mode": "R"}, "raw.pth"),
    "MIRNet2": Small({"n_feat": 16}, "params.pth", _EXTRA),
    "RCAN": Small({"n_resgroups": 2, "n_resblocks": 2, "n_feats": 32, "scale": 2}, "raw.safetensors"),
    "Uformer": Small({"embed_dim": 16, "depths": [1] * 9, "img_size": 128}, "parallel.pth"),
    "M3SNet": Small({"width": 16, "enc_blk_nums": [1, 1, 1, 2]}, "state_dict.pth", _EXTRA),
    "PLKSR": Small({"dim": 32, "n_blocks": 2, "upscaling_factor": 2}, "params.pth"),
    # others
    "SAFMN": Small({"dim": 24, "n_blocks": 2, "upscaling_factor": 2}, "params.pth"),
    "HAT": Small(
        {
            "depths": (1, 1),
            "embed_dim": 60,
            "num_heads": (2, 2),
            "window_size": 8,
            "upscale": 2,
            "img_size": 32,
        },
        "params_ema.pth",
    ),
    "OmniSR": Small({"num_feat": 32, "up_scale": 2}, "lightning.ckpt"),
    "SPAN": Small({"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 32, "upscale": 2}, "half.pth"),
    "DAT": Small(
        {
            "img_size": 32,
            "embed_dim": 24,
            "depth": [2],
            "num_heads": [2],
            "split_size": [8, 8],
            "expansion_factor": 2.0,
        },
        "params.pth",
    ),
    "Compact": Small({"num_feat": 32, "num_conv": 4, "upscale": 2}, "params.pth"),
    "Swin2SR": Small(_SWIN | {"upsampler": "pixelshuffle"}, "params_ema.pth"),
    "RealCUGAN": Small({}, "raw.pth", kind="UpCunet2x"),
}


@torch.no_grad()
def pruned(name: str) -> nn.Module:
    """Return a network of `NETWORKS`: random weights, of which the largest tenth of every layer is left."""
    small = NETWORKS[name]
    registry()  # imports what spandrel needs
    torch.manual_seed(0)
    kind = getattr(import_module(f"{small.package}.{name}"), small.kind or name)
    network: nn.Module = kind(**small.arguments).eval()
    for p in network.parameters():
        if p.numel() and not p.any():  # branches that are zero at the start of training are not after it
            p.normal_(std=0.1)
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and layer.weight.requires_grad:
            weight = layer.weight.flatten()
            dropped = weight.abs().topk(round((1 - DENSITY) * len(weight)), largest=False).indices
            layer.weight.copy_(weight.index_fill(0, dropped, 0).view_as(layer.weight))
    return network


def write_checkpoint(name: str, network: nn.Module, folder: Path) -> Path:
    """Write a network's weights in the layout of its authors; return the file."""
    layout = NETWORKS[name].layout
    path = folder / f"{name}_{layout}"
    LAYOUTS[layout](network.state_dict(), path)
    return path
