"""What a training step costs on the fused kernels, against PyTorch's strongest.

python benchmarks/training.py step [DIM ...]     seconds, interleaved, medians of 15; first the loss and the gradients are compared
python benchmarks/training.py memory [DIM ...]   bytes that a step adds to the process at its peak, each in a process of its own
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from mirl_sparse.bench import Allocator
from mirl_sparse.network import PromptIR, PromptIRConfig
from mirl_training.fused import fuse
from mirl_training.masks import Mask, prune

BATCH, SIZE, RUNS = 8, 64, 15
DENSITIES = 0.1, 1.0
NETWORKS = {
    16: PromptIRConfig(16, (1, 1, 1, 2), 1, prompt_dims=(8, 16, 16), prompt_sizes=(32, 16, 8), unused_layers=False),
    48: PromptIRConfig(48, (1, 1, 1, 2), 1, unused_layers=False),
}
TOLERANCE = 1e-3  # largest difference of a gradient from PyTorch's float32 one, of its largest value


def ticket(dim: int, density: float) -> tuple[PromptIR, Mask]:
    """A network with random weights, pruned layer by layer."""
    torch.manual_seed(0)
    network = PromptIR(NETWORKS[dim])
    mask = Mask.full(network)
    if density < 1:
        mask = prune(network, mask, density, "layerwise")
    mask.apply(network)
    return network, mask


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(BATCH, 3, SIZE, SIZE), torch.rand(BATCH, 3, SIZE, SIZE)


def stepper(
    network: nn.Module, mask: Mask | None, layout: torch.memory_format, run: nn.Module | None = None
) -> Callable[[], float]:
    """A step of AdamW; gradients are masked where a mask is given."""
    x, y = (image.contiguous(memory_format=layout) for image in batch())
    called = network if run is None else run
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = F.l1_loss(called(x), y)
        loss.backward()
        if mask is not None:
            mask.apply_to_gradients(network)
        optimizer.step()
        return loss.item()

    return step


def compare(network: PromptIR, mask: Mask, fused: PromptIR) -> float:
    """The largest difference of gradients, of each one's largest value; of the loss as well."""
    x, y = batch()
    losses = []
    for n in (network, fused):
        n.zero_grad(set_to_none=True)
        loss = F.l1_loss(n(x), y)
        loss.backward()
        losses.append(loss.item())
    mask.apply_to_gradients(network)
    worst = abs(losses[0] - losses[1]) / losses[0]
    for p, q in zip(network.parameters(), fused.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        worst = max(worst, float((p.grad - q.grad).abs().max() / p.grad.abs().max().clamp(1e-9)))
    return worst


def steps(dims: list[int]) -> None:
    Allocator().tune()
    for dim in dims:
        for density in DENSITIES:
            network, mask = ticket(dim, density)
            fused = deepcopy(network)
            fuse(fused, mask)
            if (worst := compare(network, mask, fused)) > TOLERANCE:
                sys.exit(f"dim {dim}, density {density}: gradients differ by {worst:.2g} of the largest; not timed")
            contenders = {"fused": stepper(fused, None, torch.contiguous_format)}
            dense_mask = mask if density < 1 else None
            for name, layout in (("", torch.contiguous_format), (" channels_last", torch.channels_last)):
                for compiled in (False, True):
                    own = deepcopy(network)
                    for p in own.parameters():
                        if p.ndim == 4:
                            p.data = p.data.contiguous(memory_format=layout)
                    torch._dynamo.reset()
                    run = torch.compile(own, dynamic=False) if compiled else None
                    contenders[("compiled" if compiled else "eager") + name] = stepper(own, dense_mask, layout, run)
                    contenders[("compiled" if compiled else "eager") + name]()
            seconds: dict[str, list[float]] = {name: [] for name in contenders}
            for i in range(RUNS + 2):
                for name, step in contenders.items():
                    time.sleep(0.02)  # the threads of the one before spin for a while
                    begin = time.perf_counter()
                    step()
                    if i >= 2:
                        seconds[name].append(time.perf_counter() - begin)
            times = {name: median(s) for name, s in seconds.items()}
            best = min((t, name) for name, t in times.items() if name != "fused")
            print(f"dim {dim}, {density:.0%}: " + ", ".join(f"{name} {t:.3f}" for name, t in times.items())
                  + f" s: {best[0] / times['fused']:.2f}x faster than {best[1]}; gradients within {worst:.1g}", flush=True)  # fmt: skip


def peak() -> int:
    """The most memory that the process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_of(kind: str, dim: int, density: float) -> None:
    """What steps add to a process that has parameters, gradients and the optimizer's state already."""
    network, mask = ticket(dim, density)
    if kind == "fused":
        fuse(network, mask)
    step = stepper(network, mask if kind != "fused" else None, torch.contiguous_format,
                   torch.compile(network, dynamic=False) if kind == "compiled" else None)  # fmt: skip
    small = torch.rand(1, 3, 8, 8)
    network(small).sum().backward()
    torch.optim.AdamW(network.parameters(), lr=0.0, fused=True).step()
    if kind == "compiled":
        step()  # compiling takes more than a step
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    for _ in range(3):
        step()
    status = Path("/proc/self/status").read_text()
    high = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(high - before)


def main() -> None:
    command, dims = sys.argv[1], [int(d) for d in sys.argv[2:]] or list(NETWORKS)
    if command == "step":
        steps(dims)


if __name__ == "__main__":
    main()
