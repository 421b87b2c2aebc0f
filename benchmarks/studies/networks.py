"""Compare networks written by others, pruned and sparsified, with their dense selves, each at its best.

    pip install '.[spandrel-extra]'
    python -m benchmarks.studies.networks [NAME ...] [--json FILE] [--dense WAY ...]

Architectures come from PyPI's spandrel packages. Their weights are random; the largest 10% of every
convolution and linear layer stay, the others are zero. Each network has a process of its own. There
`mirl_sparse.sparsify` swaps its layers, its result is compared with that of the dense network, and both are
timed in turns, the dense one in every engine of `mirl_sparse.performance.peers`. The speed-up is that of the
fastest sparse run over the fastest dense run. `networks.md` holds the last results.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import nn

from benchmarks.suite.rows import ContenderTimes
from mirl_sparse import sparsify
from mirl_sparse.architectures.image_network import import_torchvision
from mirl_sparse.files import write_whole
from mirl_sparse.performance.comparison import Candidate, Comparison
from mirl_sparse.performance.peers import DENSE, STOCK
from mirl_sparse.sparsification import SparsityReport

ROOT = Path(__file__).parents[2]
DENSITY = 0.10
_NAFNET = {
    "width": 32,
    "enc_blk_nums": [2, 2, 4, 8],
    "middle_blk_num": 12,
    "dec_blk_nums": [2, 2, 2, 2],
}
_SWINIR = {
    "img_size": 64,
    "window_size": 8,
    "depths": [6, 6, 6, 6],
    "embed_dim": 180,
    "num_heads": [6, 6, 6, 6],
    "mlp_ratio": 2,
    "upsampler": "",
}


@dataclass(frozen=True)
class Architecture:
    """Describe a network of spandrel.

    Attributes:
        module: Module of its class; the class has the name of the module.
        side: Height and width of the input.
        arguments: Arguments of the class beside its defaults.
        channels: Channels of the input.
    """

    module: str
    side: int
    arguments: Mapping[str, object] = field(default_factory=dict)
    channels: int = 3


NETWORKS = {
    "Restormer": Architecture("spandrel_extra_arches.architectures.Restormer", 128),
    "NAFNet": Architecture("spandrel.architectures.NAFNet", 256, _NAFNET),
    "MPRNet": Architecture("spandrel_extra_arches.architectures.MPRNet", 128),
    "SwinIR": Architecture("spandrel.architectures.SwinIR", 64, _SWINIR),
    "DRUNet": Architecture("spandrel.architectures.DRUNet", 256, {"in_nc": 4, "out_nc": 3}, channels=4),
    "SCUNet": Architecture("spandrel.architectures.SCUNet", 128),
    "FBCNN": Architecture("spandrel.architectures.FBCNN", 128),
    "ESRGAN": Architecture("spandrel.architectures.ESRGAN", 64),
    "DnCNN": Architecture("spandrel.architectures.DnCNN", 256, {"in_nc": 3, "out_nc": 3}),
    "MIRNet2": Architecture("spandrel_extra_arches.architectures.MIRNet2", 128),
    "RCAN": Architecture("spandrel.architectures.RCAN", 64),
    "Uformer": Architecture("spandrel.architectures.Uformer", 128),
    "M3SNet": Architecture("spandrel_extra_arches.architectures.M3SNet", 128),
    "PLKSR": Architecture("spandrel.architectures.PLKSR", 64),
}


class Row(TypedDict):
    """Hold the results of one network. The file also has the conditions, as `rows.Conditions` names them.

    Attributes:
        name: Name of the network.
        density: Fraction of the weights that are not zero.
        layers: Number of layers by implementation.
        shape: Shape of the input, (B, C, H, W).
        rows: Times of the contenders that could run, by name.
    """

    name: str
    density: float
    layers: dict[str, int]
    shape: list[int]
    rows: dict[str, ContenderTimes]


def class_of(module: str) -> Callable[..., nn.Module]:
    """Return the class of a module that has the module's name."""
    import_torchvision()
    architecture: Callable[..., nn.Module] = getattr(
        importlib.import_module(module), module.rsplit(".", 1)[1]
    )
    return architecture


@torch.no_grad()
def network(name: str) -> nn.Module:
    """Return a network of `NETWORKS` with random weights, pruned layer by layer."""
    architecture = NETWORKS[name]
    torch.manual_seed(0)
    pruned: nn.Module = class_of(architecture.module)(**architecture.arguments).eval()
    for p in pruned.parameters():
        # Branches that are zero at the start of training are not after it.
        if p.numel() and not p.any():
            p.normal_(std=0.1)
    for layer in pruned.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and layer.weight.requires_grad:
            weight = layer.weight.flatten()
            dropped = weight.abs().topk(round((1 - DENSITY) * len(weight)), largest=False).indices
            layer.weight.copy_(weight.index_fill(0, dropped, 0).view_as(layer.weight))
    return pruned


class _First(nn.Module):
    """Run a network on a copy of its input, and return its first result alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.network(x.clone())
        return result if isinstance(result, torch.Tensor) else result[0]


@torch.no_grad()
def measure(name: str, runs: int, dense_ways: Sequence[str]) -> Row:
    """Return the results of one network, with ``runs`` rounds, beside some of `peers.DENSE`.

    Raises:
        ValueError: The network does not depend on its input, or the sparse result is wrong.
    """
    warnings.simplefilter("ignore")
    side, channels = NETWORKS[name].side, NETWORKS[name].channels
    dense = _First(network(name)).eval()
    image = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(1))
    if torch.allclose(dense(image), dense(1 - image), atol=1e-2):
        raise ValueError(f"{name} gives the same for any image: comparing its results would prove nothing")
    sparsified = sparsify(dense, image)
    expected = dense(image)
    sparse = {
        "sparse": Candidate(sparsified, expected),
        "sparse compiled": Candidate(torch.compile(sparsified, dynamic=False), expected),
    }
    comparison = Comparison(dense, expected, sparse, image, dense_ways)
    if "sparse" not in comparison.sparse:
        raise ValueError(f"{name}: sparse {comparison.left_out['sparse']}")
    for _ in range(runs):
        comparison.round()
    report = sparsified.report
    assert isinstance(report, SparsityReport)
    layers = Counter(layer.implementation for layer in report.layers)
    description = {"name": name, "density": report.density, "layers": layers}
    return cast(Row, description | comparison.result().to_dict())


COLUMNS = [name for name in DENSE if name != STOCK]
SPARSE = ("sparse", "sparse compiled")


def table(rows: list[Row]) -> str:
    """Return a Markdown table of the results of networks.

    Times are medians in seconds, or a dash for what could not run. The last column is how far the sparse
    results are off, relative to the largest value.
    """
    lines = [
        f"| network | input | {' | '.join(COLUMNS)} | {' | '.join(SPARSE)} | **speed-up** | off by |",
        "|---" * (len(COLUMNS) + len(SPARSE) + 4) + "|",
    ]
    for row in rows:
        names = [*COLUMNS, *SPARSE]
        times = [f"{row['rows'][n]['median']:.3f}" if n in row["rows"] else "-" for n in names]
        sparse = [row["rows"][n] for n in SPARSE if n in row["rows"]]
        worst, speedup = max(r["difference"] for r in sparse), max(r["speedup"]["ratio"] for r in sparse)
        shape = "x".join(map(str, row["shape"][1:]))
        lines.append(f"| {row['name']} | {shape} | {' | '.join(times)} | **{speedup:.2f}x** | {worst:.0e} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--runs", type=int, default=7, help="interleaved runs of each contender")
    parser.add_argument(
        "--json", type=Path, help="file for the results; networks that it holds are not measured again"
    )
    parser.add_argument(
        "--dense",
        nargs="+",
        default=list(DENSE),
        choices=list(DENSE),
        metavar="WAY",
        help=f"dense ways that are timed, some of which compile for minutes: {', '.join(DENSE)}",
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in NETWORKS]:
        parser.error(f"no network is named {unknown[0]}; expected some of {', '.join(NETWORKS)}")
    if args.one:
        print(json.dumps(measure(args.names[0], args.runs, args.dense)))
        return
    rows: list[Row] = json.loads(args.json.read_text()) if args.json and args.json.exists() else []
    failed = False
    for name in args.names:
        if any(row["name"] == name for row in rows):
            continue
        arguments = [name, "--one", "--runs", str(args.runs), "--dense", *args.dense]
        command = [sys.executable, "-m", "benchmarks.studies.networks", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        if done.returncode:
            print(f"{name}: failed", file=sys.stderr)
            failed = True
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
        if args.json:
            write_whole(args.json, json.dumps(rows, indent=1).encode())
    print(table(rows))
    sys.exit(failed)


if __name__ == "__main__":
    main()
