"""Test every op against its reference in float64: densities, sizes, dead channels, biases, poisoned outputs.

Tolerances are relative to the largest value of the reference. What a block adds to its input is also held to
them by itself. They are what float32 gives, and half of float16's and bfloat16's rounding steps over the sums
that a pixel takes. bfloat16 needs a GPU, since the interpreter's tl.dot is wrong for it.
"""

import os
import random
from collections import Counter

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from mirl_kernels.core.triton import (
    HEIGHTS,
    PAD,
    Workspace,
    cluster_rows,
    launches,
    pack_row_groups,
    recording,
    strips,
)
from mirl_kernels.core.triton.product import moments
from mirl_kernels.core.triton.strips import split_into_strips
from mirl_kernels.core.triton.taps import Taps, gelu
from mirl_kernels.ops.conv.reference import conv
from mirl_kernels.ops.conv.triton import TritonConv
from mirl_kernels.ops.gdfn.reference import gdfn
from mirl_kernels.ops.gdfn.triton import TritonGDFN
from mirl_kernels.ops.mdta.reference import mdta
from mirl_kernels.ops.mdta.triton import TritonMDTA
from mirl_kernels.ops.pointwise.reference import pointwise
from mirl_kernels.ops.pointwise.triton import TritonPointwise
from mirl_kernels.ops.prompt.reference import prompt
from mirl_kernels.ops.prompt.triton import TritonPrompt

WORST = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1.6e-1}
RMS = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
TYPES = [kind for kind in WORST if kind != torch.bfloat16 or os.environ.get("TRITON_INTERPRET") != "1"]
DENSITIES = [0.0, "one", 0.02, 0.1, 0.5, 1.0]
# Primes, and 63 to 65 pixels of a tile of 64: 9x7, 8x8, 5x13.
SIZES = [(1, 1), (7, 11), (8, 8), (5, 13), (9, 7), (13, 10)]


class Case:
    """Make the random inputs of one seed."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.random = random.Random(seed)
        self.density = DENSITIES[seed % len(DENSITIES)]
        self.batch = self.random.choice([1, 1, 2])
        self.size = self.random.choice(SIZES)
        self.dtype = dtype

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def sparse(self, *shape: int) -> torch.Tensor:
        weight = self.normal(*shape) / (shape[1] * shape[2] * shape[3]) ** 0.5
        if self.density == "one":
            live = torch.zeros(weight.numel(), dtype=torch.bool)
            live[self.random.randrange(weight.numel())] = True
            return weight * live.view(shape)
        return weight * (torch.rand(shape, generator=self.generator) < self.density)

    def biases(self, *lengths: int) -> list[torch.Tensor | None]:
        return [0.1 * self.normal(n) if self.random.random() < 0.3 else None for n in lengths]

    def image(self, channels: int) -> torch.Tensor:
        return self.normal(self.batch, channels, *self.size).to(self.dtype)

    def check(self, device, op, x, want, base=None, **more) -> None:
        """Compare the op with the reference in float64. It writes into a part of a tensor full of NaN.

        What it adds to a ``base`` is held to the same tolerance by itself, up to a rounding step of the sum.
        """
        around = torch.full(
            (want.shape[0], want.shape[1] + 2, *want.shape[2:]), float("nan"), dtype=self.dtype
        )
        around = around.to(device)
        y = around[:, 1:-1]
        more = {name: value.to(device) if torch.is_tensor(value) else value for name, value in more.items()}
        op.to(device)(x.to(device), y, **more)
        around, y = around.cpu(), y.cpu()
        assert around[:, 0].isnan().all()
        assert around[:, -1].isnan().all()
        error = (y.double() - want).abs()
        self.near(error, want)
        if base is not None:
            self.near((error - torch.finfo(self.dtype).eps * want.abs()).clamp(min=0), want - base)

    def near(self, error, want) -> None:
        scale = float(want.abs().max().clamp(min=1e-6))
        assert float(error.max()) <= WORST[self.dtype] * scale
        assert float(error.square().mean().sqrt()) <= RMS[self.dtype] * scale


def double(values):
    return [None if v is None else v.double() for v in values]


def cases(always: int, all_seeds: int = 150):
    """Return seeds and types: the first ones always, all of them where slow tests run."""
    return [
        pytest.param(
            seed, dtype, marks=[] if seed < always else pytest.mark.slow, id=f"{seed}-{str(dtype)[6:]}"
        )
        for seed in range(all_seeds)
        for dtype in TYPES
    ]


@pytest.mark.parametrize(("seed", "dtype"), cases(8))
def test_gdfn_is_the_reference(seed, dtype, device):
    case = Case(seed, dtype)
    c, h = case.random.choice([2, 8, 16, 17, 40]), case.random.choice([1, 5, 16, 33])
    norm = 1 + 0.1 * case.normal(c), None if seed % 5 == 4 else 0.1 * case.normal(c)
    weights = case.sparse(2 * h, c, 1, 1), case.sparse(2 * h, 1, 3, 3), case.sparse(c, h, 1, 1)
    biases = case.biases(2 * h, 2 * h, c)
    x = case.image(c)
    want = gdfn(*double((x, *norm, *weights)), double(biases))
    case.check(device, TritonGDFN(*norm, *weights, biases, dtype=dtype), x, want, x.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pairs", [40, 150])  # in steps of 16, and of 32
def test_steps_of_all_numbers_of_taps_give_the_reference(pairs, dtype, device):
    """Some loops are for steps of one, two or three taps, the last one for all others."""
    case = Case(5, dtype)
    case.size, case.batch, c = (5, 13), 2, 8
    norm, x = (torch.ones(c), torch.zeros(c)), case.image(c)
    enter, leave = case.normal(2 * pairs, c, 1, 1), case.normal(c, pairs, 1, 1)
    taps = case.normal(2 * pairs, 1, 3, 3)
    counts = torch.arange(2 * pairs) % pairs * 5 // pairs + torch.tensor([0, 5]).repeat_interleave(pairs)
    places = torch.rand(2 * pairs, 9, generator=case.generator).argsort(1).view_as(taps)
    taps[places >= counts.clamp(max=9).view(-1, 1, 1, 1)] = 0  # none at all, up to nine
    op = TritonGDFN(*norm, enter, taps, leave, dtype=dtype)
    assert op.taps.step == (16 if pairs == 40 else 32)
    case.check(device, op, x, gdfn(*double((x, *norm, enter, taps, leave))), x.double())


def test_steps_in_whatever_order_are_in_the_loop_of_enough_taps():
    def taps_of(*counts):
        weight = torch.zeros(16 * len(counts), 9)
        for i, count in enumerate(counts):
            weight[16 * i, :count] = 1
        return Taps(torch.arange(len(weight)), weight, None)

    assert taps_of(0, 1, 1, 2, 3, 9).ends.tolist() == [0, 3, 4, 5]
    assert taps_of(1, 9, 1, 2).ends.tolist() == [0, 1, 1, 1]
    assert taps_of(2, 1, 3).ends.tolist() == [0, 0, 2, 3]
    assert taps_of(0, 0).ends.tolist() == [0, 0, 0, 0]  # there may be nothing to read
    assert Taps(torch.zeros(0, dtype=torch.long), torch.zeros(0, 9), None).ends.tolist() == [0, 0, 0, 0]


@triton.jit
def gelu_kernel(x, y, EXACT: tl.constexpr):
    at = tl.program_id(0) * 128 + tl.arange(0, 128)
    tl.store(y + at, gelu(tl.load(x + at), EXACT))


@pytest.mark.parametrize(("exact", "error"), [(True, 5e-7), (False, 2.6e-5)])
def test_gelu_is_within_its_documented_error(exact, error, device):
    x = torch.cat([torch.linspace(-9, 9, 4096), torch.linspace(-24, 24, 1024)]).to(device)
    y = torch.full_like(x, torch.nan)
    gelu_kernel[(len(x) // 128,)](x, y, exact)
    assert (y - torch.nn.functional.gelu(x.double())).abs().max() < error


@triton.jit
def moments_kernel(x, y, channels, WHOLE: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_C: tl.constexpr):
    at = tl.arange(0, 128)
    mean, scale = moments(x, 128, at, at >= 0, channels, 1e-5, WHOLE, BLOCKS, BLOCK_C, 128)
    tl.store(y + at, mean)
    tl.store(y + 128 + at, scale)


@pytest.mark.parametrize("channels", [3, 8, 21, 96, 384])
@pytest.mark.parametrize("blocks", [1, 3])  # of channels, in a trip
@pytest.mark.parametrize("jump", [0, -100])  # of the first channels, which all are summed up around
def test_moments_keep_their_digits_whatever_the_first_channels_are(channels, jump, blocks, device):
    x = 50 + torch.randn(channels, 128, generator=torch.Generator().manual_seed(channels))
    x[: max(1, channels // 12)] += jump
    y, block = torch.full((2, 128), torch.nan, device=device), min(8, triton.next_power_of_2(channels))
    moments_kernel[(1,)](x.to(device), y, channels, channels % (blocks * block) == 0, blocks, block)
    mean, variance = x.double().mean(0), x.double().var(0, correction=0)
    torch.testing.assert_close(
        y.cpu().double(), torch.stack([mean, (variance + 1e-5).rsqrt()]), rtol=3e-6, atol=0
    )


@pytest.mark.parametrize(("seed", "dtype"), cases(8))
def test_mdta_is_the_reference(seed, dtype, device):
    case = Case(seed, dtype)
    heads = case.random.choice([1, 2, 4])
    c = heads * case.random.choice([1, 4, 8, 17])
    norm = 1 + 0.1 * case.normal(c), None if seed % 5 == 4 else 0.1 * case.normal(c)
    weights = case.sparse(3 * c, c, 1, 1), case.sparse(3 * c, 1, 3, 3)
    temperature, out = 1 + case.normal(heads, 1, 1), case.sparse(c, c, 1, 1)
    if seed % 3 == 0:  # a dead q channel, and a dead k channel, still count in the softmax
        weights[0][0], weights[1][c + case.random.randrange(c)] = 0, 0
    biases = case.biases(3 * c, 3 * c, c)
    x = case.image(c)
    want = mdta(*double((x, *norm, *weights, temperature, out)), double(biases))
    case.check(
        device, TritonMDTA(*norm, *weights, temperature, out, biases, dtype=dtype), x, want, x.double()
    )


@pytest.mark.parametrize("dtype", [d for d in TYPES if d != torch.bfloat16])
@pytest.mark.parametrize("size", [(33, 5), (26, 8)])  # the last strip shorter, and of odd rows
@pytest.mark.parametrize("bound", ["MIN_STRIP_ROWS", "MAX_HIDDEN_BYTES"])  # by the cache, or by memory
def test_an_image_in_strips_gives_the_same_result(size, bound, dtype, device, monkeypatch):
    case = Case(4, dtype)  # half of the weights
    case.size, c, h = size, 8, 5
    norm, x = (torch.ones(c), torch.zeros(c)), case.image(c)
    pair = case.sparse(2 * h, c, 1, 1), case.sparse(2 * h, 1, 3, 3), case.sparse(c, h, 1, 1)
    qkv = (
        case.sparse(3 * c, c, 1, 1),
        case.sparse(3 * c, 1, 3, 3),
        torch.ones(2, 1, 1),
        case.sparse(c, c, 1, 1),
    )
    # Without zeros around the image these would reach into it.
    biases = 0.1 * case.normal(2 * h), 0.1 * case.normal(2 * h), None
    strip_bytes = 12 * (size[1] + PAD) * c * case.batch * dtype.itemsize
    cached = bound == "MIN_STRIP_ROWS"
    monkeypatch.setattr(strips, bound, 4 if cached else strip_bytes)
    workspace = Workspace(strip_bytes if cached else 0)
    first = TritonGDFN(*norm, *pair, biases, dtype=dtype), gdfn(*double((x, *norm, *pair)), double(biases))
    attention = TritonMDTA(*norm, *qkv, dtype=dtype), mdta(*double((x, *norm, *qkv)))
    for op, want in (first, attention, first):  # in the same memory
        with recording() as recorded:
            op.to(device)(x.to(device), workspace=workspace)
        made = Counter(launch.kernel.fn.__name__ for launch in recorded)
        assert made["mix_kernel"] > 1
        assert op is first[0] or made["gram_kernel"] > 1
        case.check(device, op, x, want, workspace=workspace)


def test_strips_are_as_many_as_share_the_processors_evenly():
    x = torch.empty(1, 8, 1024, 1024, device="meta")
    row = 100 * (1024 + PAD) * 2  # bytes of a row of hidden channels
    for processors, rows in ((132, 30), (68, 32)):  # 132: 32 rows with those around them are two waves
        few = split_into_strips(x, 100, torch.float16, Workspace(36 * row, processors))
        assert {strip.rows for strip in few[:-1]} == {rows}
        assert sum(strip.rows for strip in few) == 1024
    assert len(split_into_strips(x, 100, torch.float16, Workspace(1026 * row, 132))) == 1


@pytest.mark.parametrize("nth", [1, -1])
@pytest.mark.parametrize("size", [(16, 24), (13, 10)])
def test_other_tiles_give_the_same_result(size, nth, device, monkeypatch):
    alternatives = []

    def nth_tile(tiles, spills):
        alternatives.append(len(tiles))
        return tiles[min(nth, len(tiles) - 1)]

    monkeypatch.setattr(launches, "cheapest", nth_tile)
    case = Case(4, torch.float32)
    case.size, c = size, 24
    norm, x = (torch.ones(c), torch.zeros(c)), case.image(c)
    pair = case.sparse(40, c, 1, 1), case.sparse(40, 1, 3, 3), case.sparse(c, 20, 1, 1)
    qkv = (
        case.sparse(3 * c, c, 1, 1),
        case.sparse(3 * c, 1, 3, 3),
        torch.ones(2, 1, 1),
        case.sparse(c, c, 1, 1),
    )
    case.check(device, TritonGDFN(*norm, *pair, dtype=torch.float32), x, gdfn(*double((x, *norm, *pair))))
    case.check(device, TritonMDTA(*norm, *qkv, dtype=torch.float32), x, mdta(*double((x, *norm, *qkv))))
    weight = case.sparse(20, c, 3, 3)
    case.check(device, TritonConv(weight, dtype=torch.float32), x, conv(*double((x, weight))))
    # A product and a gate; two products, Gram matrices and a product; a convolution.
    assert sum(n > 1 for n in alternatives) >= 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("channels", "steps"), [(9, 1), (20, 2), (40, 3), (60, 4)])
def test_gram_matrices_of_heads_of_one_to_four_steps(channels, steps, dtype, device):
    case = Case(5, dtype)
    case.size, case.batch = (13, 10), 2
    norm, weights = (
        (torch.ones(channels), torch.zeros(channels)),
        (case.normal(3 * channels, channels, 1, 1), case.sparse(3 * channels, 1, 3, 3)),
    )
    weights[1][:, 0, torch.arange(3), torch.arange(3)] *= torch.rand(3 * channels, 3) < 0.4  # one tap to nine
    weights[1][:4] = 0  # dead
    temperature, out, x = torch.ones(1, 1, 1), case.sparse(channels, channels, 1, 1), case.image(channels)
    op = TritonMDTA(*norm, *weights, temperature, out, dtype=dtype)
    assert op.steps == steps
    case.check(device, op, x, mdta(*double((x, *norm, *weights, temperature, out))), x.double())


def test_gram_matrices_of_wide_heads_are_summed_in_blocks_and_shares(device):
    case = Case(2, torch.float32)
    c = 150
    norm, weights = (
        (torch.ones(c), torch.zeros(c)),
        (case.sparse(3 * c, c, 1, 1), case.sparse(3 * c, 1, 3, 3)),
    )
    temperature, out, x = torch.ones(2, 1, 1), case.sparse(c, c, 1, 1), case.normal(2, c, 9, 15)
    want = mdta(*double((x, *norm, *weights, temperature, out)))
    case.check(device, TritonMDTA(*norm, *weights, temperature, out, dtype=torch.float32), x, want, shares=3)


@pytest.mark.parametrize(("seed", "dtype"), cases(8))
def test_conv_is_the_reference(seed, dtype, device):
    case = Case(seed, dtype)
    groups = case.random.choice([1, 1, 2])
    inputs, outputs = groups * case.random.choice([1, 3, 8]), 4 * groups * case.random.choice([1, 5])
    shuffle = case.random.choice([1, 2, -2])
    geometry = {"groups": groups, "shuffle": shuffle}
    if shuffle == 1:
        geometry |= {
            "stride": case.random.choice([(1, 1), (2, 1)]),
            "dilation": case.random.choice([(1, 1), (1, 2)]),
        }
        geometry["padding"] = (
            case.random.choice([None, (2, 2, 3, 3)]) if geometry["dilation"] == (1, 1) else (2, 2, 3, 3)
        )
    else:
        case.size = case.random.choice([(2, 2), (8, 8), (6, 10)])
    weight, (bias,) = case.sparse(outputs, inputs // groups, 3, 3), case.biases(outputs)
    x = case.image(inputs)
    want = conv(x.double(), weight.double(), *double((bias,)), **geometry)
    op = TritonConv(weight, bias, **geometry, dtype=dtype)
    case.check(device, op, x, want)
    residual = case.normal(*want.shape).to(dtype)
    case.check(device, op, x, want + residual.double(), residual=residual)


@pytest.mark.parametrize(("seed", "dtype"), cases(5))
def test_pointwise_is_the_reference(seed, dtype, device):
    case = Case(seed, dtype)
    c, o = case.random.choice([1, 16, 37]), case.random.choice([1, 15, 48])
    weight, (bias,) = case.sparse(o, c, 1, 1), case.biases(o)
    x = case.image(c)
    want = pointwise(*double((x, weight, bias)))
    case.check(device, TritonPointwise(weight, bias, dtype=dtype), x, want)


@pytest.mark.parametrize(("seed", "dtype"), cases(5))
def test_prompt_is_the_reference(seed, dtype, device):
    case = Case(seed, dtype)
    c, p, n, side = (case.random.choice(k) for k in ([1, 12, 70], [1, 6], [1, 5], [1, 4, 9]))
    linear, bias, prompts = case.normal(n, c), case.normal(n), case.normal(1, n, p, side, side)
    weight, x = case.sparse(p, p, 3, 3), case.image(c)
    want = prompt(*double((x, linear, bias, prompts, weight)))
    case.check(device, TritonPrompt(linear, bias, prompts, weight, dtype=dtype), x, want)


@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (1, 1), (16, 16), (150, 33)])
def test_row_groups_hold_the_matrix(rows, columns, density, height):
    matrix = torch.randn(rows, columns) * (torch.rand(rows, columns) < density)
    groups = pack_row_groups(matrix, torch.float32, [height])
    assert torch.equal(groups.dense(), matrix)
    assert groups.start[-1] == len(groups.column)
    assert sorted(r for r in groups.row.tolist() if r >= 0) == list(range(rows))


@pytest.mark.parametrize("height", [16, 32])
def test_clustering_puts_rows_that_share_columns_side_by_side(height):
    kinds = torch.rand(4, 64) < 0.2
    shuffled = kinds.repeat_interleave(height, 0)[torch.randperm(4 * height)]
    order = cluster_rows(shuffled.numpy(), height)
    assert sorted(order.tolist()) == list(range(4 * height))
    together = shuffled[order].view(4, height, 64)
    assert (together == together[:, :1]).all()


def test_a_gate_beyond_float16_leaves_other_channels_right(device):
    """Infinity times a weight of 0 would make NaN of all channels."""
    case = Case(5, torch.float16)
    case.size, c, h = (8, 9), 8, 5
    norm, x = (torch.ones(c), torch.zeros(c)), case.image(c)
    enter, taps, leave = case.sparse(2 * h, c, 1, 1), case.sparse(2 * h, 1, 3, 3), case.sparse(c, h, 1, 1)
    leave[1:, 0] = 0
    right = gdfn(*double((x, *norm, enter, taps, leave)), [None] * 3)
    for half in (0, h):
        taps[half] *= 1e4  # the first gate reaches 1e8
    y = TritonGDFN(*norm, enter, taps, leave).to(device)(x.to(device)).cpu()
    assert y.isfinite().all()
    case.near((y[:, 1:].double() - right[:, 1:]).abs(), right[:, 1:])


def test_attention_of_values_beyond_float16_is_finite(device):
    case = Case(5, torch.float16)
    case.size, c = (8, 9), 8
    norm, x = (torch.ones(c), torch.zeros(c)), case.image(c)
    enter, taps = case.sparse(3 * c, c, 1, 1), case.sparse(3 * c, 1, 3, 3)
    out, temperature = case.sparse(c, c, 1, 1), torch.ones(2, 1, 1)
    for entering, tapped in ((3e4, 1), (1, 1e6), (3e2, 1e4)):
        op = TritonMDTA(*norm, entering * enter, tapped * taps, temperature, out)
        assert op.to(device)(x.to(device)).isfinite().all()


@pytest.mark.parametrize("name", ["conv", "pointwise", "prompt"])
def test_results_beyond_float16_become_its_largest_number(name, device):
    case = Case(5, torch.float16)
    c = 8
    x = case.image(c)
    if name == "conv":
        weight = 6e4 * case.sparse(c, c, 3, 3)
        op, want = TritonConv(weight), conv(*double((x, weight)))
    elif name == "pointwise":
        weight = 6e4 * case.sparse(c, c, 1, 1)
        op, want = TritonPointwise(weight), pointwise(*double((x, weight)))
    else:
        weights = case.normal(5, c), case.normal(5), 1e7 * case.normal(1, 5, c, 4, 4), case.sparse(c, c, 3, 3)
        op = TritonPrompt(*weights)
        y = op.to(device)(x.to(device))
        assert y.isfinite().all()
        return
    y = op.to(device)(x.to(device)).cpu().double()
    assert (want.abs() > 65_504).any()
    case.near((y - want.clamp(-65504, 65504)).abs(), want.clamp(-65504, 65504))


def test_numbers_that_are_none_stay_none(device):
    """A result that hides NaN of its input would be worse than NaN."""
    x = torch.ones(1, 4, 8, 8, dtype=torch.float16)
    x[0, :, 2, 3] = torch.nan
    y = TritonPointwise(torch.eye(4)[:, :, None, None]).to(device)(x.to(device)).cpu()
    assert torch.equal(y.isnan(), x.isnan())


def test_operands_of_a_wrong_shape_type_or_layout_are_refused(device):
    op = TritonPointwise(torch.ones(2, 3, 1, 1), dtype=torch.float16)  # before anything runs
    with pytest.raises(ValueError, match=r"expected torch\.float16 planes"):
        op(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="planes"):
        op(torch.zeros(1, 3, 4, 4, dtype=torch.float16).transpose(2, 3)[:, :, :2])
    with pytest.raises(ValueError, match=r"y is \(1, 1, 4, 4\); expected \(1, 2, 4, 4\)"):
        op(torch.zeros(1, 3, 4, 4, dtype=torch.float16), torch.zeros(1, 1, 4, 4, dtype=torch.float16))
    x, one, three = (
        torch.zeros(1, 5, 3, 4, dtype=torch.float16),
        torch.ones(12, 4, 1, 1),
        torch.ones(12, 1, 3, 3),
    )
    for other in (
        op,
        TritonConv(torch.ones(2, 3, 3, 3)),
        TritonGDFN(torch.ones(4), None, one, three, torch.ones(4, 6, 1, 1)),
        TritonMDTA(torch.ones(4), None, one, three, torch.ones(1, 1, 1), one[:4]),
        TritonPrompt(torch.ones(2, 4), torch.ones(2), torch.ones(1, 2, 3, 2, 2), torch.ones(3, 3, 3, 3)),
    ):
        with pytest.raises(ValueError, match=r"x is \(1, 5, 3, 4\); expected \(1, [34], 3, 4\)"):
            other(x)
    with pytest.raises(ValueError, match=r"residual is \(1, 1, 3, 4\); expected \(1, 2, 3, 4\)"):
        TritonConv(torch.ones(2, 5, 3, 3))(x, residual=x[:, :1])
    with pytest.raises(ValueError, match="3x4; expected even sides"):
        TritonConv(torch.ones(2, 5, 3, 3), shuffle=-2)(x)
