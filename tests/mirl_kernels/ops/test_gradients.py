"""Gradients of the fused kernels against float64 autograd of the definitions."""

from collections.abc import Sequence

import pytest
import torch
from example_counts import examples
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu.training import Pattern
from mirl_kernels.core.layer_norm import layer_norm
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.conv import conv
from mirl_kernels.ops.conv.backward import TrainableConv
from mirl_kernels.ops.gdfn import gdfn
from mirl_kernels.ops.gdfn.backward import TrainableGDFN
from mirl_kernels.ops.mdta import mdta
from mirl_kernels.ops.mdta.backward import TrainableMDTA
from mirl_kernels.ops.naf import naf
from mirl_kernels.ops.naf.backward import TrainableNAF

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")

TOLERANCE = 1e-4  # of each gradient, relative to its largest value
# The same where float32 itself loses digits. The largest error of 50,000 gradients of MDTA on images of up to
# 3x3 pixels, where q and k are shortest, was 3.6e-4.
LARGEST_TOLERANCE = 1e-3
CASES = examples(250)

densities = st.sampled_from([0.0, 0.03, 0.1, 0.3, 0.7, 1.0])
sides = st.integers(1, 24)
shapes = st.one_of(
    st.tuples(sides, sides), st.tuples(st.integers(1, 5), st.integers(41, 140)), st.just((64, 64))
)
several = st.tuples(st.integers(1, 3), shapes)
# For these the kernels take rows of up to 16 as one, and go back through the norm while they go on.
eight = st.tuples(
    st.integers(8, 9), st.tuples(st.integers(1, 20), st.sampled_from([1, 2, 4, 8, 16, 20, 40, 64]))
)
batches = st.one_of(several, several, eight)  # (batch, shape)
seeds = st.integers(0, 2**31)


def noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def masked(generator: torch.Generator, density: float, *shape: int) -> tuple[Tensor, Tensor]:
    """Return a mask and a weight that is zero where the mask is."""
    mask = torch.rand(shape, generator=generator) < density
    return mask, mask * noise(generator, *shape) / max(1.0, shape[1] * density) ** 0.5


def gradients(function, arguments: list[Tensor], upstream: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return function(*arguments) and its gradients, in the precision of the arguments."""
    leaves = [a.clone().requires_grad_() for a in arguments]
    result = function(*leaves)
    result.backward(upstream.to(result.dtype))
    return result.detach(), [leaf.grad for leaf in leaves]


def likeness(x: Tensor, eps: float) -> float:
    """Return how many times a layer norm magnifies the rounding of its most uniform pixel."""
    return (x.abs().amax(1) / (x.var(1, correction=0) + eps).sqrt()).max().item()


def check(
    op,
    reference,
    masks: dict[int, Tensor],
    arguments: list[Tensor],
    upstream: Tensor,
    normed: bool = True,
    spread: dict[int, tuple[int, ...]] | None = None,
    magnified: float = 0.0,
) -> None:
    """Compare op(*arguments) and its gradients with the reference in float64.

    ``masks`` are those of the arguments with these numbers. The error of a gradient is relative to the
    largest value of that gradient, or of one item's part in it: no float32 sum brings back what items cancel.
    The same goes for what else an argument is broadcast over, if ``spread`` has its shape there.

    Where PyTorch itself loses more in float32 (a q of norm 1e-3 magnifies its gradient's rounding a
    thousandfold), up to four times its error is allowed. PyTorch may be lucky, so a rounding that is
    ``magnified`` so many times is allowed as well, both up to LARGEST_TOLERANCE.
    """
    single, upstream = [a.float() for a in arguments], upstream.float()
    exact = [a.double() for a in single]
    expected, wanted = gradients(reference, exact, upstream)
    got, computed = gradients(op, single, upstream)
    torch.testing.assert_close(
        got.double(), expected, atol=1e-4 * max(1.0, expected.abs().max().item()), rtol=0
    )
    _, pytorch = gradients(reference, single, upstream)
    apart = [a.expand((spread or {}).get(i, a.shape)) for i, a in enumerate(exact)]
    by_item = [
        gradients(lambda *a, b=b: reference(*a)[b : b + 1], apart, upstream[b : b + 1])[1]
        for b in range(len(upstream))
    ]
    # Pixels whose few channels are nearly alike lose digits in any float32 layer norm, in PyTorch's more.
    alike = likeness(arguments[0], 1e-5)
    lost = 64 * torch.finfo(torch.float32).eps * max(alike if normed else 0.0, magnified)
    for i, (want, ours, theirs, *parts) in enumerate(zip(wanted, computed, pytorch, *by_item, strict=True)):
        if i in masks:
            assert not ours[~masks[i]].any()
            want, theirs, parts = want * masks[i], theirs * masks[i], [part * masks[i] for part in parts]
        scale = max(1e-3, *(part.abs().max().item() for part in (want, *parts)))
        allowed = max(lost, 4 * (theirs - want).abs().max().item() / scale)
        tolerance = max(TOLERANCE, min(allowed, LARGEST_TOLERANCE))
        torch.testing.assert_close(ours.double(), want, atol=tolerance * scale, rtol=0)


def check_naf(
    seed: int,
    batch: int,
    shape: tuple[int, int],
    channels: int,
    pairs: tuple[int, int],
    density: float,
    tap_density: float,
    biased: Sequence[bool],
    eps: float = 1e-6,
) -> None:
    g = torch.Generator().manual_seed(seed)
    x, *norm1 = arguments(g, batch, channels, shape)
    norm2 = arguments(g, batch, channels, (1, 1))[1:]
    scales = [noise(g, channels), noise(g, channels)]
    p, q = pairs
    shapes = (2 * p, channels, 1, 1), (2 * p, 1, 3, 3), (p, p, 1, 1), (channels, p, 1, 1)
    shapes += (2 * q, channels, 1, 1), (channels, q, 1, 1)
    densities = density, tap_density, density, density, density, density
    masks, weights = zip(*(masked(g, d, *s) for d, s in zip(densities, shapes, strict=True)), strict=True)
    biases = [0.3 * noise(g, len(w)) for w, has_bias in zip(weights, biased, strict=True) if has_bias]
    op = TrainableNAF(masks, biased, (eps, 2 * eps))

    def by(function, *epsilons):
        def call(x, *rest):
            norms = [(*rest[:2], *epsilons[:1]), (*rest[2:4], *epsilons[1:])]
            values = iter(rest[12:])
            given = [next(values) if has_bias else None for has_bias in biased]
            return function(x, norms, rest[6:12], given, *rest[4:6])

        return call

    reference = by(naf, eps, 2 * eps)
    middle = reference(x, *norm1, *norm2, scales[0], 0 * scales[1], *weights, *biases)
    magnified = max(likeness(x, eps), likeness(middle, 2 * eps))
    if magnified > 200:  # float32 has too few digits, in PyTorch too
        return
    check(
        by(op),
        reference,
        dict(enumerate(masks, 7)),
        [x, *norm1, *norm2, *scales, *weights, *biases],
        noise(g, *x.shape),
        magnified=magnified,
    )


def arguments(g: torch.Generator, batch: int, channels: int, shape: tuple[int, int]) -> list[Tensor]:
    return [noise(g, batch, channels, *shape), 1 + 0.1 * noise(g, channels), 0.1 * noise(g, channels)]


def check_gdfn(
    seed: int,
    batch: int,
    shape: tuple[int, int],
    channels: int,
    pairs: int,
    density: float,
    tap_density: float,
) -> None:
    g = torch.Generator().manual_seed(seed)
    first = arguments(g, batch, channels, shape)
    project_in = masked(g, density, 2 * pairs, channels, 1, 1)
    dwconv = masked(g, tap_density, 2 * pairs, 1, 3, 3)
    project_out = masked(g, density, channels, pairs, 1, 1)
    masks, weights = zip(project_in, dwconv, project_out, strict=True)
    check(
        TrainableGDFN(*masks), gdfn, dict(enumerate(masks, 3)), [*first, *weights], noise(g, *first[0].shape)
    )


def check_mdta(
    seed: int,
    batch: int,
    shape: tuple[int, int],
    heads: int,
    per_head: int,
    density: float,
    tap_density: float,
) -> None:
    g = torch.Generator().manual_seed(seed)
    channels = max(2, heads * per_head) if heads == 1 else heads * per_head
    first = arguments(g, batch, channels, shape)
    qkv_mask, qkv = masked(g, density, 3 * channels, channels, 1, 1)
    tap_mask, taps = masked(g, tap_density, 3 * channels, 1, 3, 3)
    out_mask, out = masked(g, density, channels, channels, 1, 1)
    temperature = 1 + 0.3 * noise(g, heads, 1, 1)
    normed = layer_norm(*first)
    qk = F.conv2d(F.conv2d(normed, qkv), taps, padding=1, groups=3 * channels)[:, : 2 * channels]
    lengths = qk.flatten(2).norm(dim=2)
    op = TrainableMDTA(qkv_mask, tap_mask, out_mask, heads)
    check(
        op,
        mdta,
        {3: qkv_mask, 4: tap_mask, 6: out_mask},
        [*first, qkv, taps, temperature, out],
        noise(g, *first[0].shape),
        spread={5: (heads, channels // heads, 1)},  # a head's temperature, over the rows of its attention
        magnified=(1 / lengths[lengths > 0]).max().item() if lengths.any() else 0.0,
    )


@CASES
@given(seeds, batches, st.integers(2, 24), st.integers(1, 30), densities, densities)
def test_gdfn_has_the_gradients_of_its_definition(seed, batches, channels, pairs, density, tap_density):
    check_gdfn(seed, *batches, channels, pairs, density, tap_density)


@CASES
@given(seeds, batches, st.integers(1, 3), st.integers(1, 9), densities, densities)
def test_mdta_has_the_gradients_of_its_definition(seed, batches, heads, per_head, density, tap_density):
    check_mdta(seed, *batches, heads, per_head, density, tap_density)


@examples(100)
@given(
    seeds,
    batches,
    st.integers(4, 24),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    densities,
    densities,
    st.tuples(*[st.booleans()] * 6),
)
def test_naf_has_the_gradients_of_its_definition(
    seed, batches, channels, pairs, density, tap_density, biased
):
    check_naf(seed, *batches, channels, pairs, density, tap_density, biased)


# These layers are wider than the first-level cache's panel. They have so few pixels that panels are kept
# instead of every task's gradients.
WIDE = examples(30)
few_pixels = st.sampled_from([(2, 3), (5, 7), (8, 8), (3, 41), (16, 16)])
dense = st.sampled_from([0.1, 0.7, 1.0])


@WIDE
@given(seeds, st.integers(1, 9), few_pixels, st.integers(97, 230), st.integers(80, 230), dense)
def test_wide_gdfn_has_the_gradients_of_its_definition(seed, batch, shape, channels, pairs, density):
    check_gdfn(seed, batch, shape, channels, pairs, density, 1.0)


@WIDE
@given(seeds, st.integers(1, 9), few_pixels, st.integers(1, 4), st.integers(49, 60), dense)
def test_wide_mdta_has_the_gradients_of_its_definition(seed, batch, shape, heads, per_head, density):
    check_mdta(seed, batch, shape, heads, per_head, density, 1.0)


@examples(10)
@given(seeds, st.integers(1, 9), few_pixels, st.integers(97, 230), st.integers(80, 230), dense)
def test_wide_naf_has_the_gradients_of_its_definition(seed, batch, shape, channels, pairs, density):
    check_naf(seed, batch, shape, channels, (pairs, pairs), density, 1.0, [True] * 6)


@CASES
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 12),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 2, -2]),
    shapes,
    densities,
    st.booleans(),
)
def test_conv_has_the_gradients_of_its_definition(
    seed, batch, inputs, outputs, kernel, shuffle, shape, density, added
):
    g = torch.Generator().manual_seed(seed)
    if shuffle == 2:
        outputs *= 4
    if shuffle == -2:
        shape = (2 * shape[0], 2 * shape[1])
    x = noise(g, batch, inputs, *shape)
    mask, weight = masked(g, density, outputs, inputs, kernel, kernel)
    expected = conv(x, weight, shuffle=shuffle)
    residual = [noise(g, *expected.shape)] if added else []
    op = TrainableConv(mask)

    def by(conv):
        return lambda x, w, r=None: conv(x, w, shuffle=shuffle, residual=r)

    check(by(op), by(conv), {1: mask}, [x, weight, *residual], noise(g, *expected.shape), normed=False)


def test_an_image_of_other_channels_is_refused():
    ones = torch.ones
    norm = ones(4), torch.zeros(4)
    masks = ones(8, 4, 1, 1).bool(), ones(8, 1, 3, 3).bool(), ones(4, 4, 1, 1).bool()
    with pytest.raises(BackendError, match="expected 4 channels"):
        TrainableGDFN(*masks)(ones(1, 3, 8, 8), *norm, *(m.float() for m in masks))
    masks = ones(12, 4, 1, 1).bool(), ones(12, 1, 3, 3).bool(), ones(4, 4, 1, 1).bool()
    with pytest.raises(BackendError, match="expected 4 channels"):
        qkv, taps, out = (m.float() for m in masks)
        TrainableMDTA(*masks, 2)(ones(1, 3, 8, 8), *norm, qkv, taps, ones(2, 1, 1), out)
    shapes = (8, 4, 1, 1), (8, 1, 3, 3), *[(4, 4, 1, 1)] * 2, (8, 4, 1, 1), (4, 4, 1, 1)
    masks = [ones(shape).bool() for shape in shapes]
    with pytest.raises(BackendError, match="expected 4 channels"):
        weights = [m.float() for m in masks]
        TrainableNAF(masks, [False] * 6, (1e-6, 1e-6))(
            ones(1, 3, 8, 8), [norm, norm], weights, [None] * 6, ones(4), ones(4)
        )


def test_a_layer_of_more_weights_than_can_be_numbered_is_refused():
    alive = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(BackendError, match="more than 16777216 weights"):
        Pattern(alive, torch.tensor([0, 2**24]), torch.arange(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_dtype_changes_nothing(dtype):
    torch.set_default_dtype(dtype)
    try:
        check_gdfn(0, 2, (9, 20), 6, 12, 0.3, 0.5)
        check_mdta(0, 2, (9, 20), 2, 4, 0.3, 0.5)
        check_naf(0, 2, (9, 20), 6, (7, 5), 0.3, 0.5, [True] * 6)
    finally:
        torch.set_default_dtype(torch.float32)
