"""The linear layer on the CPU against its definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import TOLERANCE, cases, densities, maybe, noise, seeds, weights

from mirl_kernels.ops.linear import PackedLinear, linear


@cases
@given(
    seeds,
    st.lists(st.integers(1, 90), min_size=1, max_size=3),
    st.integers(1, 80),
    st.integers(1, 80),
    densities,
    st.booleans(),
)
def test_the_kernel_computes_the_definition_for_any_layout(seed, leading, inputs, outputs, density, biased):
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
