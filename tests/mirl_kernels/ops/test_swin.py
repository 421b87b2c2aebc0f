"""The block of Swin transformers on the CPU against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import TOLERANCE, as_float, cases, densities, maybe, noise, poisoned, seeds, weights
from torch import Tensor

from mirl_kernels.core.cpu import PackedMatrix
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.swin import PackedSwin, swin

windows = st.integers(1, 9).flatmap(lambda side: st.tuples(st.just(side), st.integers(0, side - 1)))


def drawn(generator, shape, heads, hidden, window, density, biased, halves=2):
    """Return an input, and what the definition takes after it, in float64; for one half or both."""
    channels = shape[3]
    sizes = (3 * channels, channels), (channels, channels), (hidden, channels), (channels, hidden)
    norms = [
        (1 + 0.1 * noise((channels,), generator), 0.1 * noise((channels,), generator), eps)
        for eps in (1e-6, 1e-5)
    ]
    biases = [maybe(size[:1], wanted, generator) for size, wanted in zip(sizes, biased, strict=True)]
    return noise(shape, generator), [
        norms[:halves],
        [weights(size, density, generator) for size in sizes][: 2 * halves],
        biases[: 2 * halves],
        noise((heads, window**2, window**2), generator),
    ]


def as_float_options(options):
    return {name: value.float() if isinstance(value, Tensor) else value for name, value in options.items()}


def packed(arguments, **options) -> PackedSwin:
    norms, *rest = arguments
    return PackedSwin(
        [(*as_float(list(norm[:2])), norm[2]) for norm in norms],
        *map(as_float, rest),
        **as_float_options(options),
    )


def tolerance(x, arguments, **options) -> float:
    """Return how far float32 may be off: a few times what the definition loses in it, or TOLERANCE."""
    norms, *rest = arguments
    single = swin(
        x,
        [(*as_float(list(norm[:2])), norm[2]) for norm in norms],
        *map(as_float, rest),
        **as_float_options(options),
    )
    exact = swin(x.double(), *arguments, **options)
    return max(TOLERANCE * max(1.0, exact.abs().max().item()), 4 * (single - exact).abs().max().item())


@cases
@given(
    seeds,
    st.integers(1, 2),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    windows,
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from([-100.0, float("-inf")]),
    densities,
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_the_kernel_computes_the_definition(
    seed, batch, counts, window_and_shift, heads, depth, hidden, masked, density, biased, halves, modulated
):
    window, shift = window_and_shift
    g = torch.Generator().manual_seed(seed)
    shape = batch, counts[0] * window, counts[1] * window, heads * depth
    x, arguments = drawn(g, shape, heads, hidden, window, density, biased, halves)
    options = {"window": window, "shift": shift, "masked": masked}
    options["modulator"] = maybe((window**2, shape[3]), modulated, g)
    x = x.float()
    expected = swin(x.double(), *arguments, **options)
    result = packed(arguments, **options)(x)
    atol = tolerance(x, arguments, **options)
    torch.testing.assert_close(result.double(), expected, atol=atol, rtol=0)


def test_large_logits_and_large_windows():
    """Windows of more pixels than a panel, and logits of which all but one vanish."""
    g = torch.Generator().manual_seed(0)
    x, arguments = drawn(g, (1, 32, 16, 12), 3, 24, 16, 1.0, [True] * 4)
    arguments[1][0] *= 8
    x = x.float()
    result = packed(arguments, window=16, shift=5)(x)
    expected = swin(x.double(), *arguments, window=16, shift=5)
    atol = tolerance(x, arguments, window=16, shift=5)
    torch.testing.assert_close(result.double(), expected, atol=atol, rtol=0)


def test_nothing_is_written_around_the_result(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, arguments = drawn(g, (1, 10, 5, 7), 1, 3, 5, 0.5, [True] * 4)
    x = x.float()
    out, memory = poisoned(torch.empty, x.shape)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *_: out)
    result = packed(arguments, window=5, shift=2)(x)
    assert result.data_ptr() == out.data_ptr()
    assert not result.isnan().any()
    assert memory.isnan().sum() == memory.numel() - out.numel()


def test_channels_that_are_the_same_for_all_pixels_are_removed():
    """A constant k changes no softmax; a constant v, or hidden channel, is a bias."""
    g = torch.Generator().manual_seed(0)
    x, arguments = drawn(g, (1, 8, 8, 8), 2, 6, 4, 1.0, [True] * 4)
    qkv, _, fc1, _ = arguments[1]
    qkv[8:12], qkv[20:], fc1[2:] = 0, 0, 0  # the first head's k, the second one's v, and hidden channels
    op = packed(arguments, window=4)
    assert op.starts.tolist() == [[0, 0, 4], [0, 4, 4]]
    assert PackedMatrix(op.fc1).rows == 2
    x = x.float()
    torch.testing.assert_close(op(x).double(), swin(x.double(), *arguments, window=4), atol=1e-5, rtol=0)


def test_a_modulator_makes_channels_vary_that_a_gain_of_zero_would_make_constant():
    g = torch.Generator().manual_seed(0)
    x, arguments = drawn(g, (1, 8, 8, 8), 2, 6, 4, 1.0, [True] * 4)
    arguments[0][0][0].zero_()
    modulator = noise((16, 8), g)
    op, x = packed(arguments, window=4, modulator=modulator), x.float()
    assert op.starts.tolist() == [[0, 4, 8], [0, 4, 8]]
    expected = swin(x.double(), *arguments, window=4, modulator=modulator)
    torch.testing.assert_close(op(x).double(), expected, atol=1e-5, rtol=0)


def test_tokens_are_taken_with_the_size_of_their_image():
    g = torch.Generator().manual_seed(0)
    x, arguments = drawn(g, (2, 8, 12, 6), 2, 6, 4, 0.5, [False] * 4)
    op, x = packed(arguments, window=4, shift=1), x.float()
    assert torch.equal(op(x.flatten(1, 2), (8, 12)), op(x).flatten(1, 2))


@pytest.mark.parametrize("shape", [(1, 8, 10, 6), (1, 7, 8, 6)])
def test_images_that_windows_do_not_divide_are_refused(shape):
    arguments = drawn(torch.Generator().manual_seed(0), (1, 4, 4, 6), 2, 6, 4, 0.5, [False] * 4)[1]
    with pytest.raises(BackendError, match="the window, 4, divides"):
        packed(arguments, window=4)(torch.zeros(shape))


def test_weights_that_do_not_belong_together_are_refused():
    arguments = drawn(torch.Generator().manual_seed(0), (1, 4, 4, 6), 2, 6, 4, 0.5, [False] * 4)[1]
    with pytest.raises(ValueError, match="do not belong together"):
        packed(arguments, window=5)
    with pytest.raises(ValueError, match="do not belong together"):
        packed(arguments, window=4, shift=4)
    with pytest.raises(ValueError, match=r"modulator is \(15, 6\)"):
        packed(arguments, window=4, modulator=torch.zeros(15, 6))
