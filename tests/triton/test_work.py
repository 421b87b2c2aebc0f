"""Test the counted work of every launch against what it does in the interpreter.

Compared are the bytes of the addresses that it touches, its products, and the trips of its loops. The trips
are known by the products and the loads of taps in them.
"""

from collections import Counter

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from triton.runtime import interpreter

from mirl_kernels.core.triton import Workspace, count_work, recording, strips
from mirl_kernels.core.triton.taps import LEVELS, STEP, TAPS_OF_A_TRIP
from mirl_kernels.ops.conv.triton import TritonConv
from mirl_kernels.ops.gdfn.triton import TritonGDFN
from mirl_kernels.ops.mdta.triton import TritonMDTA
from mirl_kernels.ops.pointwise.triton import TritonPointwise
from mirl_kernels.ops.prompt.triton import TritonPrompt


class Trace:
    """Record what a kernel touches while it runs."""

    def __init__(self, monkeypatch):
        builder = interpreter.interpreter_builder
        self.read, self.written, self.macs, self.dots, self.loads = {}, {}, 0, 0, Counter()
        self.programs = []  # what each reads
        load, store, dot = builder.create_masked_load, builder.create_masked_store, builder.create_dot
        begin = builder.set_grid_idx

        def touch(touched, pointers, mask):
            item = pointers.get_element_ty().primitive_bitwidth // 8
            touched.setdefault(item, []).append(np.unique(pointers.data[mask.data]))

        def traced_load(pointers, mask, *rest):
            touch(self.read, pointers, mask)
            touch(self.programs[-1], pointers, mask)
            self.loads[pointers.data.shape] += 1
            return load(pointers, mask, *rest)

        def traced_store(pointers, value, mask, *rest):
            touch(self.written, pointers, mask)
            return store(pointers, value, mask, *rest)

        def traced_dot(a, b, d, *rest):
            self.dots += 1
            self.macs += a.data.shape[0] * a.data.shape[1] * b.data.shape[1]
            return dot(a, b, d, *rest)

        def begun(*place):
            self.programs.append({})
            return begin(*place)

        monkeypatch.setattr(builder, "set_grid_idx", begun)
        monkeypatch.setattr(builder, "create_masked_load", traced_load)
        monkeypatch.setattr(builder, "create_masked_store", traced_store)
        monkeypatch.setattr(builder, "create_dot", traced_dot)

    @staticmethod
    def bytes(touched, tensor=None):
        """Count distinct addresses, or those of one tensor alone."""
        total = 0
        for item, addresses in touched.items():
            at = np.unique(np.concatenate(addresses)).astype(np.int64)
            if tensor is not None:
                at = at[
                    (at >= tensor.data_ptr()) & (at < tensor.data_ptr() + tensor.numel() * tensor.itemsize)
                ]
            total += item * len(at)
        return total


def sparse(*shape, density=0.2):
    return torch.randn(shape) * (torch.rand(shape) < density)


def taps(channels):
    weight = sparse(channels, 1, 3, 3, density=0.15)
    weight[::5] = 0  # dead
    return weight


def conv(stride, shuffle):
    return lambda c: TritonConv(sparse(4 * 5, c, 3, 3), torch.randn(20), stride=stride, shuffle=shuffle)


OPS = {
    "pointwise": lambda c: TritonPointwise(sparse(37, c, 1, 1)),
    "conv": conv((1, 1), 1),
    "conv, stride": conv((2, 1), 1),
    "conv, shuffle": conv((1, 1), 2),
    "conv, unshuffle": conv((1, 1), -2),
    "gdfn": lambda c: TritonGDFN(
        torch.ones(c), torch.zeros(c), sparse(60, c, 1, 1), taps(60), sparse(c, 30, 1, 1)
    ),
    "mdta": lambda c: TritonMDTA(
        torch.ones(c),
        None,
        sparse(3 * c, c, 1, 1),
        taps(3 * c),
        torch.ones(2, 1, 1),
        sparse(c, c, 1, 1),
        [None, 0.1 * torch.randn(3 * c), None],
    ),
    "prompt": lambda c: TritonPrompt(
        torch.randn(3, c), torch.randn(3), torch.rand(1, 3, 6, 4, 4), sparse(6, 6, 3, 3)
    ),
}


LEVEL_LOOPS = LEVELS.value  # of mix_kernel: one for the steps of each small number of taps
# The loops that have the products.
PRODUCTS = {
    "pointwise_kernel": slice(-1, None),
    "conv_kernel": slice(-1, None),
    "mix_kernel": slice(LEVEL_LOOPS + 1),
    "gram_kernel": slice(1),
    "compose_kernel": slice(1),
}
# The tensors that one launch leaves to the next.
PASSED = {
    "pointwise_kernel": ["y"],
    "mix_kernel": ["hidden"],
    "gram_kernel": ["hidden", "sums"],
    "sum_kernel": ["sums"],
}


def loads_of_taps(launch, trips):
    """Return how often a step of channels loads a tap at all pixels of a program."""
    a = launch.arguments
    if launch.kernel.fn.__name__ == "gram_kernel":
        return 2 * a["TAPS"] * sum(trips[1:])  # of q and of k
    in_loops = sum(level * n for level, n in enumerate(trips[:LEVEL_LOOPS], 1))
    return (1 + a["GATE"]) * (in_loops + TAPS_OF_A_TRIP.value * trips[-1])


@pytest.mark.parametrize(
    ("batch", "size", "cached"), [(1, (16, 24), 1 << 20), (2, (10, 14), 1 << 20), (1, (14, 24), 11 << 10)]
)
@pytest.mark.parametrize("op", OPS)
def test_launches_do_what_is_counted(op, batch, size, cached, device, monkeypatch):
    if device != "cpu":
        pytest.skip("only the interpreter shows what a kernel touches")
    torch.manual_seed(len(op))
    module = OPS[op](24)
    monkeypatch.setattr(strips, "MIN_STRIP_ROWS", 2)
    with recording() as launches:
        module(torch.randn(batch, 24, *size).half(), workspace=Workspace(cached))
    made = Counter(launch.kernel.fn.__name__ for launch in launches)
    assert made
    assert "mix_kernel" not in made or (made["mix_kernel"] > 1) == (cached < 1 << 20)
    for launch in launches:
        counted = count_work(launch)
        with monkeypatch.context() as patch:
            trace = Trace(patch)
            launch.kernel[launch.grid](**launch.arguments)
        name = launch.kernel.fn.__name__
        assert trace.bytes(trace.written) == counted.written, name
        if counted.buffer:
            hidden = [launch.arguments[of] for of in PASSED[name]]
            assert counted.buffer == max(t.numel() * t.itemsize for t in hidden)
            assert counted.buffer <= cached or name in ("gram_kernel", "sum_kernel")
            touched = sum(trace.bytes(trace.read, t) + trace.bytes(trace.written, t) for t in hidden)
            assert counted.hidden == pytest.approx(touched, rel=0.01), name
        else:
            assert counted.hidden == 0
            assert name not in ("mix_kernel", "gram_kernel")
        # Zeros that two channels share count for both. What padding reads of another channel does not count.
        assert counted.read == pytest.approx(trace.bytes(trace.read), rel=0.01), name
        # Pixels beyond the last are counted as well.
        assert counted.fetched >= 0.99 * sum(map(trace.bytes, trace.programs)), name
        assert counted.macs == trace.macs, name
        if name in PRODUCTS:
            assert sum(counted.trips[PRODUCTS[name]]) == trace.dots, name
        if name in ("mix_kernel", "gram_kernel"):
            pixels = launch.arguments["BLOCK_P"]
            side_by_side = min(pixels, 16)
            step = launch.arguments.get("BLOCK_H", STEP)
            loads = trace.loads[pixels // side_by_side, step, side_by_side]
            assert loads_of_taps(launch, counted.trips) == loads > 0, name
