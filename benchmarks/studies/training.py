"""Compare what training costs on the fused kernels with PyTorch's strongest.

    python -m benchmarks.studies.training step [DIM ...]
    python -m benchmarks.studies.training networks [NAME ...] [--density D ...] [--batch N] [--side N]
    python -m benchmarks.studies.training memory [DIM ...]
    python -m benchmarks.studies.training curve DATA
    python -m benchmarks.studies.training imp DATA

- `step` times steps in turns and prints medians in seconds; losses and gradients are compared first.
- `networks` does the same for networks of the spandrel packages. Of these `prune` trains the blocks and
  convolutions that are sparse enough by their surviving weights, and the rest in PyTorch.
- `memory` prints the bytes that steps add to a process at their peak, each in a process of its own.
- `curve` trains 300 steps on the same photos, fused and reference; the losses and the next mask are compared.
- `imp` prunes ten rounds in both and prints the seconds in all, and of a step by density.

DIM is 16 or 48, with one block per level. DATA is the root of the paths in `PHOTOS`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.studies.networks import class_of
from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.allocator import Allocator
from mirl_training.engine import fuse
from mirl_training.engine.sparse_layers import use_sparse_layers
from mirl_training.pruning import Mask, prune_to_density
from mirl_training.runs import Run, RunConfig, StepReport, save_weights

PHOTOS = {
    "clean": "train/clean/BSDS400",
    "haze": "train/dehaze/SOTS_train",
    "tasks": {"noise15": 1, "noise25": 1, "noise50": 1, "rain": 2, "haze": 2},
}
BATCH, SIZE, RUNS = 8, 64, 11
DENSITIES = 0.1, 1.0
_BLOCKS = {"num_blocks": [1, 1, 1, 2], "num_refinement_blocks": 1}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {  # module of the class, and its arguments
    "NAFNet": (
        "spandrel.architectures.NAFNet",
        {"width": 32, "enc_blk_nums": [1, 1, 1, 2], "middle_blk_num": 1, "dec_blk_nums": [1, 1, 1, 1]},
    ),
    "Restormer": ("spandrel_extra_arches.architectures.Restormer", {"dim": 24, **_BLOCKS}),
}
TOLERANCE = 1e-3  # largest difference of a gradient from PyTorch's float32 one, of its largest value


def config(dim: int) -> PromptIRConfig:
    if dim == 16:
        return PromptIRConfig(
            dim, (1, 1, 1, 2), 1, prompt_dims=(8, 16, 16), prompt_sizes=(32, 16, 8), unused_layers=False
        )
    return PromptIRConfig(dim, (1, 1, 1, 2), 1, unused_layers=False)


def pruned(dim: int, density: float) -> tuple[PromptIR, Mask]:
    """Return a network with random weights, pruned layer by layer, and its mask."""
    torch.manual_seed(0)
    network = PromptIR(config(dim))
    mask = Mask.full(network)
    if density < 1:
        mask = prune_to_density(network, mask, density, "layerwise")
    mask.apply(network)
    return network, mask


class Contender:
    """Train a network in one way, one step of AdamW at a time.

    Args:
        name: "fused", "eager" or "compiled", with or without " channels_last".
        network: Is copied.
        layout: Memory layout of the weights and images.
        batch: Images of a step.
        side: Their height and width.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        layout: torch.memory_format = torch.contiguous_format,
        batch: int = BATCH,
        side: int = SIZE,
    ) -> None:
        self.name, self.network = name, deepcopy(network)
        for p in self.network.parameters():
            if p.ndim == 4:
                p.data = p.data.contiguous(memory_format=layout)
        torch.manual_seed(1)
        self.images = [torch.rand(batch, 3, side, side).contiguous(memory_format=layout) for _ in range(2)]
        self.call: Callable[[Tensor], Tensor] = self.network
        if name.startswith("compiled"):
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = 64  # blocks of many widths share their code
            self.call = torch.compile(self.network, dynamic=False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-6, fused=True)
        self.mask: Mask | None = None

    def prune(self, network: nn.Module, mask: Mask) -> None:
        """Take another network's weights and mask."""
        self.network.load_state_dict(network.state_dict())
        self.mask = mask if mask.nnz < mask.total else None
        if self.name == "fused" and isinstance(self.network, PromptIR):
            fuse(self.network, mask)
            self.mask = None
        elif self.name == "fused":
            use_sparse_layers(self.network, mask)

    def gradients(self) -> float:
        """Compute the gradients, and return the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        degraded, clean = self.images
        loss = F.l1_loss(self.call(degraded), clean)
        loss.backward()
        if self.mask is not None:
            self.mask.apply_to_gradients(self.network)
        return loss.item()

    def step(self) -> None:
        self.gradients()
        self.optimizer.step()


def difference(a: Contender, b: Contender) -> float:
    """Return the largest difference of losses and gradients, each relative to its largest value."""
    first, second = a.gradients(), b.gradients()
    worst = abs(first - second) / first
    for p, q in zip(a.network.parameters(), b.network.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        worst = max(worst, float((p.grad - q.grad).abs().max() / p.grad.abs().max().clamp(1e-9)))
    return worst


def steps(dims: list[int]) -> None:
    Allocator().tune()
    for dim in dims:
        _compare(f"dim {dim}", partial(pruned, dim), DENSITIES, BATCH, SIZE)


def step_networks(names: list[str], densities: list[float], batch: int, side: int) -> None:
    Allocator().tune()
    for name in names:
        _compare(name, partial(_pruned_network, name), densities, batch, side)


def _pruned_network(name: str, density: float) -> tuple[nn.Module, Mask]:
    """Return one of `NETWORKS` with random weights, pruned layer by layer, and its mask."""
    module, arguments = NETWORKS[name]
    torch.manual_seed(0)
    network = class_of(module)(**arguments)
    with torch.no_grad():
        for p in network.parameters():
            if not p.any():  # branches that are zero at the start of training are not after it
                p.normal_(std=0.1)
    mask = Mask.full(network)
    if density < 1:
        mask = prune_to_density(network, mask, density, "layerwise")
    mask.apply(network)
    return network, mask


def _compare(
    title: str,
    pruned: Callable[[float], tuple[nn.Module, Mask]],
    densities: Sequence[float],
    batch: int,
    side: int,
) -> None:
    """Print how much faster steps of a network are at each density than PyTorch's fastest."""
    network = pruned(1.0)[0]
    make = partial(Contender, batch=batch, side=side)
    contenders = [make("fused", network)]
    for name in ("eager", "compiled"):
        contenders.append(make(name, network))
        contenders.append(make(f"{name} channels_last", network, torch.channels_last))
    fused, eager = contenders[:2]
    for density in densities:
        for contender in contenders:
            contender.prune(*pruned(density))
        if (worst := difference(eager, fused)) > TOLERANCE:
            sys.exit(f"{title}, density {density}: gradients differ by {worst:.2g} of the largest; not timed")
        times = _median_seconds(contenders)
        best, name = min((t, name) for name, t in times.items() if name != "fused")
        listed = ", ".join(f"{name} {t:.3f}" for name, t in times.items())
        speedup = f"{best / times['fused']:.2f}x faster than {name} (gradients within {worst:.0e})"
        print(f"{title}, {density:.0%}: {speedup}; seconds: {listed}", flush=True)


def _median_seconds(contenders: list[Contender]) -> dict[str, float]:
    """Return the seconds of a step of each contender, timed in turns."""
    seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
    for i in range(RUNS + 2):
        for c in contenders:
            time.sleep(0.02)  # the threads of the contender before spin for a while
            begin = time.perf_counter()
            c.step()
            if i >= 2:  # the first steps compile, and touch their memory
                seconds[c.name].append(time.perf_counter() - begin)
    return {name: median(s) for name, s in seconds.items()}


def _resident(field: str) -> int:
    """Return VmRSS or VmHWM in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def measure_memory(name: str, dim: int, density: float) -> None:
    """Print how many bytes three steps add at their peak to a process.

    The process already has the libraries, the parameters, their gradients and the optimizer's state. What the
    kernels take, such as packed weights, counts.
    """
    network, mask = pruned(dim, density)
    contender = Contender(name, network)
    for p in contender.network.parameters():
        p.grad = torch.zeros_like(p)
    contender.optimizer.step()
    torch.nn.Conv2d(3, 3, 3)(torch.rand(1, 3, 8, 8)).sum().backward()  # loads libraries of the backward pass
    if name.startswith("compiled"):
        contender.step()  # the compiler takes more than a step does
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    contender.prune(network, mask)
    for _ in range(3):
        contender.step()
    print(_resident("VmHWM") - before)


def memory(dims: list[int]) -> None:
    for dim in dims:
        for density in DENSITIES:
            peaks = {}
            for name in ("fused", "eager", "compiled"):
                command = [sys.executable, __file__, "one-memory", name, str(dim), str(density)]
                peaks[name] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            best = min(peaks["eager"], peaks["compiled"])
            listed = ", ".join(f"{name} {size / 2**20:.0f} MB" for name, size in peaks.items())
            print(
                f"dim {dim}, {density:.0%}: 1/{best / peaks['fused']:.1f} of the best; {listed}", flush=True
            )


def settings(network: dict[str, Any], training: dict[str, Any], pruning: dict[str, Any]) -> RunConfig:
    """Return the settings of a run by AdamW and MIR-L's loss.

    Args:
        network: ``network`` for a new one, or ``start`` for a ticket.
        training: Settings beside the optimizer's.
        pruning: Settings of the pruning.
    """
    optimizer = {
        "batch_size": BATCH,
        "patch_size": SIZE,
        "weight_decay": 1e-4,
        "clip_norm": 0.5,
        "save_every": 1000,
    }
    values = {"data": PHOTOS, "training": optimizer | training, "pruning": pruning}
    return RunConfig(**(network | values))


def curve(data: Path) -> None:
    """Print how far fused training is from the reference.

    It starts from the shipped ticket, at MIR-L's learning rate. From fresh weights training is chaotic:
    PyTorch's own losses come to differ by a third if weights differ in their last bit. The effect of such a
    change is printed as well.
    """
    run_settings = settings(
        {"start": "small"},
        {"learning_rate": 2e-4, "steps": 300, "warmup_steps": 30, "validate_every": 1000},
        {"criterion": "layerwise", "rate": 0.2, "rounds": 1, "final_steps": 31},
    )
    losses: dict[str, list[float]] = {}
    masks = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, engine in (("fused", "fused"), ("reference", "reference"), ("last bit", "reference")):
            run = Run(
                run_settings,
                data,
                Path(folder, name),
                partial(_note_loss, losses.setdefault(name, [])),
                engine,
            )
            if name == "last bit":
                _change_last_bits(run)
            masks[name] = load_file(run.go() / "mask.safetensors")
    alive = sum(int(keep.sum()) for keep in masks["reference"].values())
    for name in ("fused", "last bit"):
        pairs = list(zip(losses[name][:299], losses["reference"][:299], strict=True))  # the last is a mean
        worst = max(abs(a - b) / b for a, b in pairs)
        differing = sum(int((masks[name][n] != keep).sum()) for n, keep in masks["reference"].items())
        print(
            f"{name}: 300 losses within {worst:.1e} of the reference's;"
            f" {differing} places of the next mask differ, of {alive} kept"
        )


def _note_loss(losses: list[float], step: StepReport) -> None:
    losses.append(step["loss"])


def _change_last_bits(run: Run) -> None:
    """Change the weights that a run starts from by about their last bit."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in run.network.parameters():
            p.mul_(1 + 6e-8 * torch.randn(p.shape, generator=noise))
    metadata = run.context.architecture.metadata()
    save_weights(run.folder / "start.safetensors", run.network.state_dict(), metadata)


def imp(data: Path) -> None:
    Allocator().tune()
    run = settings(
        {"network": config(16)},
        {"learning_rate": 1e-3, "steps": 60, "warmup_steps": 6, "validate_every": 60},
        {"criterion": "layerwise", "rate": 0.2, "rounds": 10},
    )
    with tempfile.TemporaryDirectory() as folder:
        totals = {}
        for engine in ("fused", "reference"):
            begin = time.perf_counter()
            Run(run, data, Path(folder, engine), lambda _: None, engine).go()
            totals[engine] = time.perf_counter() - begin
        logs = [
            [json.loads(line) for line in Path(folder, e, "log.jsonl").read_text().splitlines()]
            for e in totals
        ]
        for fused, reference in zip(*logs, strict=True):
            a, b = fused["seconds_per_step"], reference["seconds_per_step"]
            print(f"density {fused['density']:6.1%}: a step {a:.3f} s, eager PyTorch {b:.3f} s, {b / a:.2f}x")
    print(
        f"ten rounds in all: {totals['fused']:.0f} s, eager PyTorch {totals['reference']:.0f} s,"
        f" {totals['reference'] / totals['fused']:.2f}x"
    )


def _dim(text: str) -> int:
    if text not in ("16", "48"):
        raise argparse.ArgumentTypeError(f"{text!r} is not 16 or 48")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("step", "memory"):
        commands.add_parser(name).add_argument("dims", nargs="*", type=_dim, metavar="DIM", default=[16, 48])
    networks = commands.add_parser("networks")
    networks.add_argument("names", nargs="*", metavar="NAME", default=list(NETWORKS))
    networks.add_argument("--density", type=float, nargs="+", default=[0.1])
    networks.add_argument("--batch", type=int, default=4)
    networks.add_argument("--side", type=int, default=128)
    for name in ("curve", "imp"):
        commands.add_parser(name).add_argument("data", type=Path)
    one = commands.add_parser("one-memory")  # of a process that `memory` starts
    one.add_argument("name")
    one.add_argument("dim", type=int)
    one.add_argument("density", type=float)
    args = parser.parse_args()
    match args.command:
        case "step":
            steps(args.dims)
        case "networks":
            if unknown := set(args.names) - set(NETWORKS):
                parser.error(f"{', '.join(sorted(unknown))}: expected one of {', '.join(NETWORKS)}")
            step_networks(args.names, args.density, args.batch, args.side)
        case "memory":
            memory(args.dims)
        case "curve":
            curve(args.data)
        case "imp":
            imp(args.data)
        case "one-memory":
            measure_memory(args.name, args.dim, args.density)


if __name__ == "__main__":
    main()
