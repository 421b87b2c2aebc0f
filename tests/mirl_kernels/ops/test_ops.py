"""Every CPU op against its reference in float64, over shapes, densities and dead channels."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import leaky_relu

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.block import PackedBlock
from mirl_kernels.ops.block import reference as block
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.conv import reference as conv
from mirl_kernels.ops.conv_transpose import PackedConvTranspose
from mirl_kernels.ops.conv_transpose import reference as conv_transpose
from mirl_kernels.ops.depthwise import PackedDepthwise
from mirl_kernels.ops.depthwise import reference as depthwise
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.gdfn import reference as gdfn
from mirl_kernels.ops.linear import PackedLinear
from mirl_kernels.ops.linear import reference as linear
from mirl_kernels.ops.mdta import PackedMDTA
from mirl_kernels.ops.mdta import reference as mdta
from mirl_kernels.ops.naf import PackedNAF
from mirl_kernels.ops.naf import reference as naf
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.pointwise import reference as pointwise
from mirl_kernels.ops.prompt import PackedPrompt
from mirl_kernels.ops.prompt import reference as prompt

TOLERANCE = 5e-6  # of float32, relative to the largest result, where the layer norm loses no digits

densities = st.sampled_from([0.0, -1.0, 0.02, 0.1, 0.5, 1.0])  # -1: a single weight
sides = st.integers(1, 40)
seeds = st.integers(0, 2**31)
cases = settings(max_examples=60)
shapes = st.one_of(
    st.tuples(sides, sides), st.tuples(st.integers(1, 6), st.integers(41, 300))
)  # (height, width)


def weights(shape: tuple[int, ...], density: float, generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator, dtype=torch.float64) / max(1, shape[1] * density) ** 0.5
    if density < 0:
        kept = torch.zeros(values.numel(), dtype=torch.bool)
        kept[torch.randint(values.numel(), (1,), generator=generator)] = True
        return values * kept.view(shape)
    return values * (torch.rand(shape, generator=generator) < density)


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


GUARD = 64  # floats in front of an image and behind it


def poisoned(layout, shape) -> tuple[Tensor, Tensor]:
    """An image without its pixels, and the memory that it lies in: what is read or left that should not be, shows as NaN."""
    like = layout(*shape)
    memory = torch.full((like.untyped_storage().nbytes() // 4 + 2 * GUARD,), torch.nan)
    return memory.as_strided(like.shape, like.stride(), GUARD), memory


def check(op, expected, x, *args, tolerance=TOLERANCE) -> None:
    for layout in (torch.empty, cpu.empty):  # planes, and the engine's rows
        (given, _), (out, memory) = poisoned(layout, x.shape), poisoned(layout, expected.shape)
        op.bind(given.copy_(x), out, *args)()
        assert memory[:GUARD].isnan().all()
        assert memory[-GUARD:].isnan().all()
        atol = tolerance * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(out.double(), expected, atol=atol, rtol=0)


def test_activations_of_what_is_infinite_or_no_number():
    op = PackedPointwise(torch.ones(1, 1, 1, 1))
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, -1, 2]).view(1, 1, 1, 5)
    for op.activation, op.slope, want in (
        ("relu", 0.0, x.relu()),
        ("leaky_relu", 0.1, leaky_relu(x, 0.1)),
    ):
        torch.testing.assert_close(op(x), want, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("shuffle", [1, 2, -2])
def test_ops_refuse_weights_of_another_layer(shuffle):
    x, weight = torch.rand(1, 8, 8, 8), torch.rand(16, 8, 1, 1)
    conv, pointwise = PackedConv(weight, shuffle=shuffle).packed, PackedPointwise(weight).packed
    linear, depthwise = (
        PackedLinear(weight[:, :, 0, 0]).packed,
        PackedDepthwise(torch.rand(8, 1, 1, 1)).packed,
    )
    r, u = max(shuffle, 1), max(-shuffle, 1)
    for outputs, right in ((16, True), (12, False), (20, False)):
        calls = [
            lambda n=outputs: torch.ops.mirl.conv(
                x, conv, 8, n * u * u // (r * r), 8 * r // u, 8 * r // u, 1, 1, shuffle, "none", 0.0
            ),
            lambda n=outputs: torch.ops.mirl.pointwise(x, pointwise, 8, n, "none", 0.0),
            lambda n=outputs: torch.ops.mirl.linear(x, linear, 8, n, "none", 0.0),
            lambda n=outputs: torch.ops.mirl.depthwise(x, depthwise, 8, n // 2, 8, 8, 1, 1, "none", 0.0),
        ]
        for call in calls:
            with nullcontext() if right else pytest.raises(BackendError, match="packed weights have"):
                call()


def test_fused_ops_refuse_weights_of_another_block():
    r = torch.rand
    x, norm = r(1, 8, 9, 9), (torch.ones(8), torch.zeros(8))

    def gdfn_of(outputs: int, hidden: int = 12) -> PackedGDFN:
        return PackedGDFN(*norm, r(24, 8, 1, 1), r(24, 1, 3, 3), r(outputs, hidden, 1, 1))

    def mdta_of(outputs: int) -> PackedMDTA:
        return PackedMDTA(*norm, r(24, 8, 1, 1), r(24, 1, 3, 3), torch.ones(2, 1, 1), r(outputs, 8, 1, 1))

    def prompt_of(outputs: int, side: int = 4) -> PackedPrompt:
        return PackedPrompt(r(3, 8), r(3), r(1, 3, 5, 4, side), r(outputs, 5, 3, 3))

    def naf_of(outputs: int) -> PackedNAF:
        shapes = (
            (24, 8, 1, 1),
            (24, 1, 3, 3),
            (12, 12, 1, 1),
            (8, 12, 1, 1),
            (24, 8, 1, 1),
            (outputs, 12, 1, 1),
        )
        return PackedNAF(
            [(*norm, 1e-6)] * 2,
            [r(shape) for shape in shapes],
            [None] * 6,
            torch.ones(8),
            torch.ones(outputs),
        )

    gdfn_right, mdta_right, prompt_right, naf_right = gdfn_of(8), mdta_of(8), prompt_of(5), naf_of(8)
    for right in (gdfn_right, mdta_right, prompt_right, naf_right, PackedBlock(mdta_right, gdfn_right)):
        right(x)
    other = PackedGDFN(torch.ones(4), torch.zeros(4), r(24, 4, 1, 1), r(24, 1, 3, 3), r(4, 12, 1, 1))
    for wrong in (lambda: gdfn_of(16), lambda: mdta_of(16), lambda: prompt_of(7), lambda: prompt_of(5, 6), lambda: naf_of(16),
                  lambda: PackedBlock(mdta_right, other)):  # fmt: skip
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            wrong()
    wide = [PackedPointwise(r(16, n, 1, 1)).packed for n in (12, 8)]
    project_in, dwconv, _, centred = gdfn_right.packed()
    qkv, taps, out, *rest = mdta_right.packed()
    matrices = naf_right._matrices()
    for call in (
        lambda: torch.ops.mirl.gdfn(x, project_in, dwconv, wide[0], centred),
        lambda: torch.ops.mirl.mdta(x, qkv, taps, wide[1], *rest),
        lambda: torch.ops.mirl.block(x, qkv, taps, wide[1], *rest, *gdfn_right.packed()),
        lambda: torch.ops.mirl.block(x, qkv, taps, out, *rest, project_in, dwconv, wide[0], centred),
        lambda: torch.ops.mirl.prompt(x, r(3, 8), r(3), r(1, 3, 4, 4, 4), prompt_right.conv3x3),
        lambda: torch.ops.mirl.naf(x, [*matrices[:5], wide[0]], [1e-6, 1e-6]),
    ):
        with pytest.raises(BackendError, match="packed weights have"):
            call()
    for shape in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="one input and output or more"):
            PackedLinear(r(shape))


def maybe(shape: tuple[int, ...], given: bool, generator: torch.Generator) -> Tensor | None:
    """A bias, or none."""
    return 0.3 * noise(shape, generator) if given else None


def as_float(args):
    """Nested lists of tensors, in float32."""
    return [as_float(a) for a in args] if isinstance(args, list) else args if args is None else args.float()


def norm_tolerance(x: Tensor) -> float:
    """TOLERANCE, or more where all channels of a pixel are nearly alike: there the layer norm magnifies the
    rounding of its own mean, in any float32 implementation."""
    lost = (x.abs().amax(1) / (x.var(1, correction=0) + 1e-5).sqrt()).max().item()
    return max(TOLERANCE, 4 * torch.finfo(torch.float32).eps * lost)


def attention_tolerance(x: Tensor, biased: bool, reference, *args) -> float:
    """`norm_tolerance`, or more with biases: these make all pixels' q and k alike, and a float32 sum of 1024 products of
    one sign loses up to sqrt(1024) roundings (2e-6 of a logit, times what it does to the result), here as in the
    reference, twice whose own error is allowed where that is more still."""
    expected = reference(x.float().double(), *args)
    lost = (reference(x.float(), *map(as_float, args)) - expected).abs().max() / max(
        1.0, expected.abs().max().item()
    )
    return max(norm_tolerance(x), 4 * TOLERANCE if biased else 0, 2 * lost.item())


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), shapes, densities, densities, st.booleans(),
       st.tuples(st.booleans(), st.booleans(), st.booleans()))  # fmt: skip
def test_gdfn(seed, batch, channels, hidden, shape, density, tap_density, centred, biased):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    x = noise((batch, channels, height, width), g)
    biases = [
        maybe((n,), given, g) for n, given in zip((2 * hidden, 2 * hidden, channels), biased, strict=True)
    ]
    args = [1 + 0.1 * noise((channels,), g), 0.1 * noise((channels,), g) if centred else None,
            weights((2 * hidden, channels, 1, 1), density, g), weights((2 * hidden, 1, 3, 3), tap_density, g),
            weights((channels, hidden, 1, 1), density, g), biases]  # fmt: skip
    expected = gdfn(x.float().double(), *args)
    check(PackedGDFN(*as_float(args)), expected, x.float(), tolerance=norm_tolerance(x))


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), shapes, densities, densities,
       st.lists(st.booleans(), min_size=6, max_size=6))  # fmt: skip
def test_naf(seed, batch, channels, first, second, shape, density, tap_density, biased):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    x = noise((batch, channels, height, width), g)
    sizes = [(2 * first, channels, 1, 1), (2 * first, 1, 3, 3), (first, first, 1, 1), (channels, first, 1, 1),
             (2 * second, channels, 1, 1), (channels, second, 1, 1)]  # fmt: skip
    matrices = [weights(size, tap_density if size[2] == 3 else density, g) for size in sizes]
    biases = [maybe(size[:1], given, g) for size, given in zip(sizes, biased, strict=True)]
    norms = [(1 + 0.1 * noise((channels,), g), 0.1 * noise((channels,), g), eps) for eps in (1e-6, 1e-5)]
    scales = [noise((channels,), g), noise((channels,), g)]
    expected = naf(x.float().double(), norms, matrices, biases, *scales)
    packed = PackedNAF([(*as_float(list(norm[:2])), norm[2]) for norm in norms], as_float(matrices), as_float(biases),
                       *as_float(scales))  # fmt: skip
    scratch = torch.full((packed.scratch_floats(batch, height, width),), float("nan"))
    between = naf(x.float().double(), norms, matrices, biases, scales[0], 0 * scales[1])
    tolerance = 2 * max(norm_tolerance(x), norm_tolerance(between))
    check(packed, expected, x.float(), scratch, tolerance=tolerance)
    out = x.float().clone()
    packed.bind(out, out, scratch)()  # in place
    torch.testing.assert_close(out, packed(x.float()), atol=0, rtol=0)


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 24), shapes, densities, densities, st.booleans(),
       st.tuples(st.booleans(), st.booleans(), st.booleans()))  # fmt: skip
def test_mdta(seed, batch, heads, per_head, shape, density, tap_density, centred, biased):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    channels = heads * per_head
    x = noise((batch, channels, height, width), g)
    biases = [
        maybe((n,), given, g) for n, given in zip((3 * channels, 3 * channels, channels), biased, strict=True)
    ]
    args = [1 + 0.1 * noise((channels,), g), 0.1 * noise((channels,), g) if centred else None,
            weights((3 * channels, channels, 1, 1), density, g), weights((3 * channels, 1, 3, 3), tap_density, g),
            1 + 0.3 * noise((heads, 1, 1), g), weights((channels, channels, 1, 1), density, g), biases]  # fmt: skip
    packed = PackedMDTA(*as_float(args))
    scratch = torch.full((packed.scratch_floats(len(x), *x.shape[2:]),), float("nan"))
    check(
        packed,
        mdta(x.float().double(), *args),
        x.float(),
        scratch,
        tolerance=attention_tolerance(x, any(biased), mdta, *args),
    )


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 16), st.integers(1, 30), shapes, densities, densities,
       st.booleans(), st.booleans())  # fmt: skip
def test_block(seed, batch, heads, per_head, hidden, shape, density, tap_density, centred, biased):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    channels = heads * per_head
    x = noise((batch, channels, height, width), g)

    def half(rows: int, out: int, *more) -> list:
        biases = [maybe((n,), biased, g) for n in (rows, rows, channels)]
        return [1 + 0.1 * noise((channels,), g), 0.1 * noise((channels,), g) if centred else None,
                weights((rows, channels, 1, 1), density, g), weights((rows, 1, 3, 3), tap_density, g), *more,
                weights((channels, out, 1, 1), density, g), biases]  # fmt: skip

    attention = half(3 * channels, channels, 1 + 0.3 * noise((heads, 1, 1), g))
    feed_forward = half(2 * hidden, hidden)
    packed = PackedBlock(PackedMDTA(*as_float(attention)), PackedGDFN(*as_float(feed_forward)))
    scratch = torch.full((packed.scratch_floats(len(x), *x.shape[2:]),), float("nan"))
    between = mdta(x.float().double(), *attention)
    # What the first half rounds off is of the size of its largest values; where a pixel's channels are nearly alike, the
    # second norm magnifies that.
    rounding = torch.finfo(torch.float32).eps / 2 * between.abs().max()
    magnified = (rounding / (between.var(1, correction=0) + 1e-5).sqrt().min()).item()
    tolerance = 2 * max(
        attention_tolerance(x, biased, block, attention, feed_forward), norm_tolerance(between), magnified
    )
    expected = block(x.float().double(), attention, feed_forward)
    check(packed, expected, x.float(), scratch, tolerance=tolerance)
    out = cpu.empty(*x.shape).copy_(x)
    packed.bind(out, out, scratch)()  # in place
    torch.testing.assert_close(
        out.double(), expected, atol=tolerance * max(1.0, expected.abs().max().item()), rtol=0
    )


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.one_of(st.integers(1, 50), st.integers(90, 300)),
    st.integers(1, 50),
    shapes,
    densities,
)
def test_pointwise(seed, batch, inputs, outputs, shape, density):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    x, w, b = (
        noise((batch, inputs, height, width), g),
        weights((outputs, inputs, 1, 1), density, g),
        noise((outputs,), g),
    )
    expected = pointwise(x.float().double(), w, b)
    check(PackedPointwise(w.float(), b.float()), expected, x.float())


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 12), st.integers(1, 6), st.sampled_from([1, 3, 5, 7]),
       st.sampled_from([1, 2, 3, -2, -3]), shapes, densities, st.booleans())  # fmt: skip
def test_conv(seed, batch, inputs, outputs, kernel, shuffle, shape, density, add):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    if shuffle > 1:
        outputs *= shuffle**2
    if shuffle < -1:
        height, width = -shuffle * height, -shuffle * width
    x, w = noise((batch, inputs, height, width), g), weights((outputs, inputs, kernel, kernel), density, g)
    expected = conv(x.float().double(), w, shuffle=shuffle)
    residual = noise(tuple(expected.shape), g).float() if add else None
    expected = expected if residual is None else expected + residual.double()
    check(PackedConv(w.float(), shuffle=shuffle), expected, x.float(), None, residual)


# (size, stride, padding before and behind, dilation) along an axis
axes = st.tuples(
    st.integers(1, 6), st.integers(1, 3), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3)
)


def geometry(down: tuple, across: tuple, shape: tuple[int, int]):
    """Kernel, stride, padding, dilation and a size of image that gives a result."""
    kernel, stride, dilation = ((down[i], across[i]) for i in (0, 1, 4))
    padding = down[2], down[3], across[2], across[3]
    least = [d * (k - 1) + 1 - before - behind
             for k, d, before, behind in zip(kernel, dilation, padding[::2], padding[1::2], strict=True)]  # fmt: skip
    return kernel, stride, padding, dilation, tuple(max(n, m) for n, m in zip(shape, least, strict=True))


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), axes, axes, shapes, densities,
       st.booleans())  # fmt: skip
def test_conv_of_any_geometry(seed, batch, groups, inputs, outputs, down, across, shape, density, biased):
    kernel, stride, padding, dilation, shape = geometry(down, across, shape)
    g = torch.Generator().manual_seed(seed)
    x, w = (
        noise((batch, groups * inputs, *shape), g),
        weights((groups * outputs, inputs, *kernel), density, g),
    )
    b = maybe((groups * outputs,), biased, g)
    expected = conv(x.float().double(), w, b, stride, padding, dilation, groups)
    op = PackedConv(w.float(), b if b is None else b.float(), stride, padding, dilation, groups)
    check(op, expected, x.float())


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 3),
    axes,
    axes,
    shapes,
    densities,
    st.booleans(),
)
def test_depthwise(seed, batch, channels, multiplier, down, across, shape, density, biased):
    kernel, stride, padding, dilation, shape = geometry(down, across, shape)
    g = torch.Generator().manual_seed(seed)
    x, w = noise((batch, channels, *shape), g), weights((channels * multiplier, 1, *kernel), density, g)
    b = maybe((channels * multiplier,), biased, g)
    expected = depthwise(x.float().double(), w, b, stride, padding, dilation)
    op = PackedDepthwise(w.float(), b if b is None else b.float(), stride, padding, dilation, channels)
    check(op, expected, x.float())


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(1, 6), st.integers(1, 4),
       st.tuples(st.integers(1, 5), st.integers(1, 5)), st.tuples(st.integers(0, 3), st.integers(0, 3)),
       st.tuples(st.integers(1, 3), st.integers(1, 3)), shapes, densities, st.booleans())  # fmt: skip
def test_conv_transpose(
    seed, batch, groups, inputs, outputs, stride, kernel, padding, dilation, shape, density, biased
):
    g = torch.Generator().manual_seed(seed)
    more = tuple(min(1, stride - 1) for _ in kernel)
    least = [2 * p // stride + 2 for p in padding]
    x = noise((batch, groups * inputs, *map(max, shape, least)), g)
    w = weights((groups * inputs, outputs, *kernel), density, g)
    b = maybe((groups * outputs,), biased, g)
    args = stride, padding, more, dilation, groups
    expected = conv_transpose(x.float().double(), w, b, *args)
    check(PackedConvTranspose(w.float(), b if b is None else b.float(), *args), expected, x.float())


@cases
@given(seeds, st.lists(st.integers(1, 90), min_size=1, max_size=3), st.integers(1, 80), st.integers(1, 80), densities,
       st.booleans())  # fmt: skip
def test_linear(seed, leading, inputs, outputs, density, biased):
    g = torch.Generator().manual_seed(seed)
    x = noise((*leading[:-1], min(leading[-1], 20), inputs) if len(leading) > 1 else (leading[0], inputs), g)
    w, b = weights((outputs, inputs), density, g), maybe((outputs,), biased, g)
    op, x = PackedLinear(w.float(), b if b is None else b.float()), x.float()
    # Of other values each: what is not written must not be right because the call before has left it.
    wide = torch.cat([2 * x, x], -1)[..., :inputs]  # of which a token is a part
    planes = (
        (3 * x).movedim(-1, min(1, x.ndim - 2)).contiguous().movedim(min(1, x.ndim - 2), -1)
    )  # of an image, or x.T
    for layout in (x, wide, planes, (4 * x[:1]).expand(x.shape)):
        expected = linear(layout.double(), w, b)
        atol = TOLERANCE * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(op(layout).double(), expected, atol=atol, rtol=0)


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 50), shapes)
def test_channels_side_by_side_become_planes(seed, batch, channels, shape):
    x = noise((batch, *shape, channels), torch.Generator().manual_seed(seed)).float().permute(0, 3, 1, 2)
    assert torch.equal(cpu.with_rows(x), x)
    assert shape[1] == 1 or cpu.with_rows(x).stride(3) == 1
    assert torch.equal(cpu.with_rows(x[:, :, ::2]), x[:, :, ::2])


@cases
@given(seeds, st.integers(1, 3), st.integers(1, 20), st.integers(1, 6), st.integers(1, 10), st.integers(1, 9),
       shapes, densities)  # fmt: skip
def test_prompt(seed, batch, channels, count, prompts, side, shape, density):
    height, width = shape
    g = torch.Generator().manual_seed(seed)
    x = noise((batch, channels, height, width), g)
    args = [weights((count, channels), density, g), noise((count,), g), noise((1, count, prompts, side, side), g),
            weights((prompts, prompts, 3, 3), density, g)]  # fmt: skip
    packed = PackedPrompt(*(a.float() for a in args))
    scratch = torch.full((packed.scratch_floats(len(x), *x.shape[2:]),), float("nan"))
    check(packed, prompt(x.float().double(), *args), x.float(), scratch)


def test_dead_queries_and_keys_still_count_in_the_softmax():
    """Their logit is 0, so a live v paired with a dead k keeps its weight exp(0) = 1."""
    g = torch.Generator().manual_seed(3)
    channels = 8
    x = noise((1, channels, 9, 11), g)
    for dead in (
        range(8),
        range(3),
        range(8, 16),
        range(10, 13),
        (0, 9, 18),
        range(16),
        range(16, 20),
        range(16, 24),
    ):
        qkv = weights((3 * channels, channels, 1, 1), 1.0, g)
        qkv[list(dead)] = 0
        args = [torch.ones(channels), torch.zeros(channels), qkv, weights((3 * channels, 1, 3, 3), 1.0, g),
                torch.tensor([1.5, 0.7]).view(2, 1, 1), weights((channels, channels, 1, 1), 1.0, g)]  # fmt: skip
        packed = PackedMDTA(*(a.float() for a in args))
        assert sum(map(len, packed.live)) <= 3 * channels - len(dead)
        expected = mdta(x.float().double(), *(a.double() for a in args))
        check(
            packed,
            expected,
            x.float(),
            torch.full((packed.scratch_floats(len(x), *x.shape[2:]),), float("nan")),
        )


def test_the_layer_norm_keeps_its_digits_far_from_zero():
    """E[x^2] - E[x]^2 would lose them all: 1000^2 has none left for a variance of 1."""
    g = torch.Generator().manual_seed(4)
    x = (1000 + noise((1, 16, 8, 8), g)).float()
    args = [torch.ones(16), torch.zeros(16), weights((12, 16, 1, 1), 1.0, g), weights((12, 1, 3, 3), 1.0, g),
            weights((16, 6, 1, 1), 1.0, g)]  # fmt: skip
    out = torch.empty_like(x)
    PackedGDFN(*(a.float() for a in args)).bind(x, out)()
    expected = gdfn(x.double(), *(a.double() for a in args)) - x.double()
    torch.testing.assert_close(
        out.double() - x.double(), expected, atol=2e-3 * expected.abs().max().item(), rtol=0
    )


def test_slices_of_channels_are_written_and_nothing_beside_them():
    """As the engine concatenates: ops read and write channels of wider buffers."""
    x, out = cpu.empty(2, 9, 6, 11).normal_(), cpu.empty(2, 8, 6, 11).fill_(7.0)
    weight = torch.randn(3, 4, 1, 1)
    PackedPointwise(weight).bind(x[:, 2:6], out[:, 1:4])()
    torch.testing.assert_close(out[:, 1:4], pointwise(x[:, 2:6], weight), atol=1e-5, rtol=1e-5)
    assert (out[:, :1] == 7).all()
    assert (out[:, 4:] == 7).all()


def test_inputs_that_no_kernel_takes_are_refused():
    op = PackedPointwise(torch.ones(2, 3, 1, 1))
    for x in (
        torch.ones(1, 3, 4, 4).double(),
        torch.ones(3, 4, 4),
        torch.ones(1, 4, 4, 3).permute(0, 3, 1, 2),
    ):
        with pytest.raises(BackendError):
            op.bind(x, torch.empty(1, 2, 4, 4))()


def test_shapes_that_do_not_fit_are_refused():
    """The kernels check nothing: a wrong call would write beside its output."""
    x, out = torch.ones(1, 4, 6, 6), torch.empty(1, 4, 6, 6)
    gdfn_args = (
        torch.ones(4),
        torch.ones(4),
        torch.ones(6, 4, 1, 1),
        torch.ones(6, 1, 3, 3),
        torch.ones(4, 3, 1, 1),
    )
    mdta_args = (torch.ones(4), torch.ones(4), torch.ones(12, 4, 1, 1), torch.ones(12, 1, 3, 3), torch.ones(2, 1, 1),
                 torch.ones(4, 4, 1, 1))  # fmt: skip
    for op in (PackedPointwise(torch.ones(4, 3, 1, 1)), PackedPointwise(torch.ones(5, 4, 1, 1)),
               PackedConv(torch.ones(4, 3, 3, 3)), PackedConv(torch.ones(4, 4, 3, 3), shuffle=2),
               PackedConv(torch.ones(4, 4, 3, 3), shuffle=-2), PackedDepthwise(torch.ones(3, 1, 3, 3))):  # fmt: skip
        with pytest.raises(BackendError, match="expected"):
            op.bind(x, out)()
    with pytest.raises(BackendError, match="multiples of 2"):
        PackedConv(torch.ones(1, 4, 3, 3), shuffle=-2).bind(x[:, :, :5], out)()
    with pytest.raises(BackendError, match="expected"):
        PackedGDFN(*gdfn_args).bind(x, out[:, :3])()
    mdta_op = PackedMDTA(*mdta_args)
    for scratch in (
        None,
        torch.empty(mdta_op.scratch_floats(len(x), *x.shape[2:]) - 1),
        torch.empty(mdta_op.scratch_floats(len(x), *x.shape[2:])).double(),
    ):
        with pytest.raises(BackendError, match="scratch"):
            mdta_op.bind(x, out, scratch)()
