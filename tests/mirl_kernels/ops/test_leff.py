"""LeFF on the CPU against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import TOLERANCE, as_float, cases, densities, maybe, noise, poisoned, seeds, shapes, weights

from mirl_kernels.core.cpu import PackedMatrix
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.leff import PackedLeFF, leff


def drawn(generator, channels, hidden, densities, biased):
    """Return what the definition takes after x, in float64."""
    norm = 1 + 0.1 * noise((channels,), generator), 0.1 * noise((channels,), generator), 1e-6
    sizes = (hidden, channels), (hidden, 1, 3, 3), (channels, hidden)
    drawn_weights = [weights(size, d, generator) for size, d in zip(sizes, densities, strict=True)]
    biases = [maybe(size[:1], wanted, generator) for size, wanted in zip(sizes, biased, strict=True)]
    return norm, drawn_weights, biases


def in_float32(arguments):
    norm, *rest = arguments
    return (*as_float(list(norm[:2])), norm[2]), *map(as_float, rest)


def check(x, arguments) -> None:
    """Compare with the definition: a few times what that loses in float32 is allowed, or TOLERANCE."""
    expected, single = leff(x.double(), *arguments), leff(x, *in_float32(arguments))
    largest = max(1.0, expected.abs().max().item())
    atol = max(TOLERANCE * largest, 4 * (single - expected).abs().max().item())
    torch.testing.assert_close(PackedLeFF(*in_float32(arguments))(x).double(), expected, atol=atol, rtol=0)


@cases
@given(
    seeds,
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 40),
    shapes,
    st.tuples(densities, densities, densities),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_the_kernel_computes_the_definition(seed, batch, channels, hidden, shape, each_density, biased):
    g = torch.Generator().manual_seed(seed)
    x = noise((batch, *shape, channels), g).float()
    check(x, drawn(g, channels, hidden, each_density, biased))


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_short_rows_are_padded_with_zeros(width):
    """Rows that are worked on as one; with biases, what is beside them is not what a zero would give."""
    g = torch.Generator().manual_seed(width)
    check(noise((2, 9, width, 12), g).float(), drawn(g, 12, 20, (0.5, 1.0, 0.5), (True, True, True)))


def test_channels_that_are_the_same_for_all_pixels_are_removed():
    """Taps that are all zero leave GELU of their bias; a channel without input is zero behind linear1."""
    g = torch.Generator().manual_seed(0)
    norm, [linear1, dwconv, linear2], biases = drawn(g, 6, 5, (1.0, 1.0, 1.0), (True, True, True))
    linear1[0], biases[0][0] = 0, 0  # nothing comes in
    linear1[1] = 0  # but the bias: less of it at the border
    dwconv[2] = 0
    linear2[:, 3] = 0
    arguments = norm, [linear1, dwconv, linear2], biases
    assert PackedMatrix(PackedLeFF(*in_float32(arguments)).linear1).rows == 2
    check(noise((1, 5, 7, 6), g).float(), arguments)


def test_nothing_is_written_around_the_result(monkeypatch):
    g = torch.Generator().manual_seed(0)
    x, arguments = noise((1, 10, 5, 7), g).float(), drawn(g, 7, 9, (0.5, 0.5, 0.5), (True, True, True))
    out, memory = poisoned(torch.empty, x.shape)
    op = PackedLeFF(*in_float32(arguments))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *_: out)
    assert op(x).data_ptr() == out.data_ptr()
    assert not out.isnan().any()
    assert memory.isnan().sum() == memory.numel() - out.numel()


@pytest.mark.parametrize("shape", [(1, 4, 4, 5), (4, 4, 6), (1, 0, 4, 6)])
def test_other_inputs_are_refused(shape):
    arguments = drawn(torch.Generator().manual_seed(0), 6, 9, (0.5, 0.5, 0.5), (False, False, False))
    with pytest.raises(BackendError, match="expected"):
        PackedLeFF(*in_float32(arguments))(torch.zeros(shape))


def test_weights_that_do_not_belong_together_are_refused():
    norm, (linear1, dwconv, _), biases = drawn(torch.Generator().manual_seed(0), 6, 9, (1, 1, 1), [False] * 3)
    with pytest.raises(ValueError, match="do not belong together"):
        PackedLeFF(*in_float32((norm, [linear1, dwconv, torch.ones(7, 9)], biases)))
