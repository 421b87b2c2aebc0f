"""What a layer costs on this machine, predicted without running it.

Every op says how often it does what (`quantities`: loads, entries of sparse rows, taps, ...); a price for each, in
seconds, is fitted to the times of some sixty small ops, once per machine and number of threads, and kept in the user's
cache. The converter chooses by these prices, and a ticket search can ask what a mask would cost before it is trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import platform
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mirl_kernels.core import cpu
from mirl_kernels.ops.block import PackedBlock
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.depthwise import PackedDepthwise
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.linear import PackedLinear
from mirl_kernels.ops.mdta import PackedMDTA
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.prompt import PackedPrompt
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.files import write_whole
from mirl_sparse.runtime.cpu import Engine

_RUNS = 7
_OURS = 0.75  # of one processor: what is measured on less waits for others most of the time (0.93 to 1.2 where nothing else runs)


def dense_quantities(layer: nn.Module, shape: tuple[int, ...]) -> Counter[str]:
    """What PyTorch does for a call of a convolution, linear layer or attention's projections on an input of this shape."""
    if isinstance(layer, (nn.Linear, nn.MultiheadAttention)):
        tokens = int(np.prod(shape[:-1]))
        if isinstance(layer, nn.Linear):
            sizes = [(layer.in_features, layer.out_features)]
        else:
            sizes = [
                (width, layer.embed_dim)
                for width in (layer.embed_dim, layer.kdim, layer.vdim, layer.embed_dim)
            ]
        return Counter({"torch call": len(sizes), "torch linear mac": tokens * sum(i * o for i, o in sizes),
                        "torch float": tokens * sum(i + o for i, o in sizes)})  # fmt: skip
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    batch, _, height, width = shape if len(shape) == 4 else (1, *shape)
    pixels = batch * height * width
    if isinstance(layer, nn.ConvTranspose2d):
        results = pixels * layer.stride[0] * layer.stride[1]
        applied, kind = pixels, "transposed"
    else:
        results = applied = pixels // (layer.stride[0] * layer.stride[1])
        kind = (
            "depthwise"
            if layer.groups == layer.in_channels > 1
            else "1x1"
            if layer.kernel_size == (1, 1)
            else "conv"
        )
    lanes = 16 if kind in ("1x1", "conv") else 1  # it works on blocks of channels
    outputs, inputs = (
        -(-n // lanes) * lanes for n in (layer.out_channels, layer.in_channels // layer.groups)
    )
    macs = applied * outputs * inputs * layer.kernel_size[0] * layer.kernel_size[1]
    return Counter({"torch call": 1, f"torch {kind} mac": macs,
                    "torch float": pixels * layer.in_channels + results * layer.out_channels})  # fmt: skip


class CostModel:
    """Prices of quantities in seconds; ``rough`` if the machine was busy with other work when they were measured."""

    def __init__(self, prices: dict[str, float], rough: bool = False) -> None:
        self.prices, self.rough = prices, rough

    def seconds(self, quantities: Counter[str]) -> float:
        """What these cost together."""
        return sum(self.prices[name] * count for name, count in quantities.items())

    def network(self, network: PromptIR, height: int = 256, width: int = 256, batch: int = 1) -> float:
        """Seconds that restoring (batch, 3, height, width) with this network and its zeros takes."""
        return self.engine(Engine(network), height, width, batch)

    def engine(self, engine: Engine, height: int = 256, width: int = 256, batch: int = 1) -> float:
        """The same of a network that is packed already."""
        return sum(self.seconds(op.quantities(*shape)) for op, shape in engine.calls(batch, height, width))


def _weights(generator: torch.Generator, density: float, *shape: int) -> Tensor:
    values = torch.randn(shape, generator=generator) / max(1.0, shape[1] * density) ** 0.5
    return values * (torch.rand(shape, generator=generator) < density)


def _samples() -> Iterator[tuple[Counter[str], Callable[[], object]]]:
    """Ops of the kinds and sizes that restoration networks are made of, and how to run each."""
    g = torch.Generator().manual_seed(0)

    def packed(
        op: cpu.Packed, channels: int, side: int, outputs: int | None = None
    ) -> tuple[Counter[str], Callable[[], object]]:
        # Large images come from memory, as they do in a network.
        turns = 3 if channels * side * side >= 1 << 20 else 1
        x = [cpu.empty(1, channels, side, side).normal_(generator=g) for _ in range(turns)]
        out = [cpu.empty(1, outputs or channels, side, side).zero_() for _ in range(turns)]
        scratch = torch.empty(op.scratch_floats(1, side, side), dtype=torch.float32)
        turn = itertools.cycle([op.bind(*images, scratch) for images in zip(x, out, strict=True)])
        return op.quantities(1, side, side), lambda: next(turn)()

    ones, zeros = torch.ones, torch.zeros

    def gdfn(c: int, density: float, taps: float) -> PackedGDFN:
        h = int(c * 2.66)
        return PackedGDFN(
            ones(c),
            zeros(c),
            _weights(g, density, 2 * h, c),
            _weights(g, taps, 2 * h, 9),
            _weights(g, density, c, h),
        )

    def mdta(c: int, density: float, taps: float) -> PackedMDTA:
        return PackedMDTA(ones(c), zeros(c), _weights(g, density, 3 * c, c), _weights(g, taps, 3 * c, 9),
                          ones(max(1, c // 48), 1, 1), _weights(g, density, c, c))  # fmt: skip

    for c, side, density, taps in ((48, 256, 0.1, 0.1), (48, 128, 0.1, 0.1), (48, 128, 0.4, 0.8), (96, 128, 0.2, 0.5),
                                   (96, 256, 0.1, 0.1), (96, 256, 0.3, 0.6), (96, 64, 0.1, 0.1), (192, 64, 0.1, 0.3),
                                   (192, 64, 0.03, 0.03), (384, 32, 0.1, 0.2), (384, 32, 0.03, 0.03), (48, 128, 1, 1),
                                   (48, 256, 0.03, 0.03), (96, 256, 0.03, 0.03), (96, 128, 0.03, 0.03),
                                   (192, 32, 1, 1)):  # fmt: skip
        yield packed(PackedBlock(mdta(c, density, taps), gdfn(c, density, taps)), c, side)
    # Much of one thing beside little of another: a block's quantities grow together, and their prices would not be told apart.
    for op in mdta, gdfn:
        for c, side, density, taps in ((16, 256, 0.5, 0.15), (16, 256, 0.5, 1), (48, 128, 0.1, 1), (48, 128, 1, 0.15),
                                       (48, 128, 0.3, 0.15), (96, 64, 0.05, 1)):  # fmt: skip
            yield packed(op(c, density, taps), c, side)
    for c, o, side, density in ((3, 48, 256, 1.0), (48, 24, 256, 0.1), (96, 48, 128, 0.3), (192, 192, 32, 0.1),
                                (64, 64, 128, 0.05), (64, 64, 64, 1.0), (96, 3, 128, 0.1), (64, 64, 128, 0.2)):  # fmt: skip
        yield packed(PackedConv(_weights(g, density, o, c, 3, 3)), c, side, o)
        conv = nn.Conv2d(c, o, 3, padding=1)
        x = torch.randn(1, c, side, side, generator=g)
        yield dense_quantities(conv, tuple(x.shape)), partial(conv, x)
    for c, o, side, density in ((48, 48, 256, 0.1), (96, 96, 128, 0.2), (256, 256, 32, 0.1), (64, 128, 128, 1.0),
                                (160, 96, 64, 0.05), (64, 64, 64, 0.1)):  # fmt: skip
        yield packed(PackedPointwise(_weights(g, density, o, c, 1, 1)), c, side, o)
        conv = nn.Conv2d(c, o, 1)
        x = torch.randn(1, c, side, side, generator=g)
        yield dense_quantities(conv, tuple(x.shape)), partial(conv, x)
    for c, side, k, density in (
        (64, 128, 3, 0.1),
        (64, 128, 3, 0.6),
        (32, 128, 7, 0.3),
        (256, 32, 3, 0.5),
        (64, 256, 3, 1.0),
    ):
        yield packed(PackedDepthwise(_weights(g, density, c, 1, k, k)), c, side)
        conv = nn.Conv2d(c, c, k, padding=k // 2, groups=c)
        x = torch.randn(1, c, side, side, generator=g)
        yield dense_quantities(conv, tuple(x.shape)), partial(conv, x)
    for c, side in ((64, 32), (128, 64), (32, 128)):
        up = nn.ConvTranspose2d(c, c // 2, 2, stride=2)
        x = torch.randn(1, c, side, side, generator=g)
        yield dense_quantities(up, tuple(x.shape)), partial(up, x)
    for tokens, c, o, density in ((4096, 60, 180, 0.1), (4096, 180, 360, 0.1), (1024, 360, 180, 0.1), (512, 768, 768, 0.1),
                                  (4096, 96, 96, 1.0), (64, 180, 180, 0.1)):  # fmt: skip
        linear = nn.Linear(c, o)
        x = torch.randn(tokens, c, generator=g)
        sparse = PackedLinear(_weights(g, density, o, c))
        yield sparse.quantities(tokens), partial(sparse, x)
        yield dense_quantities(linear, tuple(x.shape)), partial(linear, x)
    for c, prompts, side, density in ((192, 64, 64, 0.1), (96, 64, 128, 0.1)):
        prompt = PackedPrompt(torch.randn(5, c, generator=g), zeros(5), torch.rand(1, 5, prompts, side, side, generator=g),
                              _weights(g, density, prompts, prompts, 3, 3))  # fmt: skip
        yield packed(prompt, c, side, prompts)


@torch.no_grad()
def measure() -> CostModel:
    """Time the sample ops and fit the prices, none negative, to relative errors; takes a few seconds."""
    from scipy.optimize import nnls  # it takes its time to import

    quantities, seconds = [], []
    began, worked = time.perf_counter(), time.process_time()
    for counts, run in _samples():
        run()
        times = []
        for _ in range(_RUNS):
            begin = time.perf_counter()
            run()
            times.append(time.perf_counter() - begin)
        quantities.append(counts)
        seconds.append(min(times))  # others use this machine as well
    rough = time.process_time() - worked < _OURS * (time.perf_counter() - began)
    names = sorted({name for counts in quantities for name in counts})
    matrix = (
        np.array([[counts[name] for name in names] for counts in quantities]) / np.array(seconds)[:, None]
    )
    scale = matrix.max(0)
    prices, _ = nnls(matrix / scale, np.ones(len(seconds)), maxiter=100 * len(names))
    return CostModel(dict(zip(names, (prices / scale).tolist(), strict=True)), rough)


def _machine() -> str:
    """What the prices hold for: this computer, and this version of the kernels and of what is counted."""
    kernels = Path(cpu.__file__).parents[2]
    sources = [
        Path(__file__),
        *sorted(kernels.rglob("*.py")),
        *(p for f in cpu.__path__ for p in Path(f).glob("*.so")),
    ]
    build = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
    return f"{platform.node()} {cpu.isa()} {torch.get_num_threads()} {torch.__version__} {build}"


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mirl-sparse", "prices.json")


def cost_model() -> CostModel:
    """This machine's prices: from the cache, or measured now and put there, unless it is busy with other work."""
    return _cost_model(_machine())


@cache
def _cost_model(machine: str) -> CostModel:
    try:
        known = json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    if machine in known:
        return CostModel(known[machine])
    model = measure()
    if model.rough:
        warnings.warn(
            "this machine is busy with other work, so the costs measured on it are rough: they are measured again next time",
            stacklevel=3,
        )
        return model
    known[machine] = model.prices
    with contextlib.suppress(OSError):  # then it is measured again next time
        write_whole(_cache_file(), json.dumps(known).encode())
    return model
