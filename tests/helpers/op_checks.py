"""Compare a CPU op with its definition in float64, on random sparse weights and random images."""

import torch
from example_counts import examples
from hypothesis import strategies as st
from torch import Tensor

from mirl_kernels.core import cpu

TOLERANCE = 5e-6  # of float32, relative to the largest result, where the layer norm loses no digits

densities = st.sampled_from([0.0, -1.0, 0.02, 0.1, 0.5, 1.0])  # -1: a single weight
sides = st.integers(1, 40)
seeds = st.integers(0, 2**31)
cases = examples(60)
shapes = st.one_of(
    st.tuples(sides, sides), st.tuples(st.integers(1, 6), st.integers(41, 300))
)  # (height, width)
# (size, stride, padding before and behind, dilation) along an axis
axes = st.tuples(
    st.integers(1, 6), st.integers(1, 3), st.integers(0, 5), st.integers(0, 5), st.integers(1, 3)
)


def weights(shape: tuple[int, ...], density: float, generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator, dtype=torch.float64) / max(1, shape[1] * density) ** 0.5
    if density < 0:
        alive = torch.zeros(values.numel(), dtype=torch.bool)
        alive[torch.randint(values.numel(), (1,), generator=generator)] = True
        return values * alive.view(shape)
    return values * (torch.rand(shape, generator=generator) < density)


def noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


GUARD = 64  # floats in front of an image and behind it


def poisoned(layout, shape) -> tuple[Tensor, Tensor]:
    """Return an image whose pixels are NaN, and the memory that it lies in.

    A pixel that is read or left out by mistake shows as NaN.
    """
    like = layout(*shape)
    memory = torch.full((like.untyped_storage().nbytes() // 4 + 2 * GUARD,), torch.nan)
    return memory.as_strided(like.shape, like.stride(), GUARD), memory


def check(op, expected, x, *args, tolerance=TOLERANCE) -> None:
    for layout in (torch.empty, cpu.empty):  # planes, and the engine's rows
        (image, _), (out, memory) = poisoned(layout, x.shape), poisoned(layout, expected.shape)
        op.bind(image.copy_(x), out, *args)()
        assert memory[:GUARD].isnan().all()
        assert memory[-GUARD:].isnan().all()
        atol = tolerance * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(out.double(), expected, atol=atol, rtol=0)


def maybe(shape: tuple[int, ...], wanted: bool, generator: torch.Generator) -> Tensor | None:
    """Return a bias, or None."""
    return 0.3 * noise(shape, generator) if wanted else None


def as_float(args):
    """Return nested lists of tensors in float32."""
    return [as_float(a) for a in args] if isinstance(args, list) else args if args is None else args.float()


def norm_tolerance(x: Tensor) -> float:
    """Return TOLERANCE, or more where all channels of a pixel are nearly alike.

    There the layer norm magnifies the rounding of its own mean, in any float32 implementation.
    """
    lost = (x.abs().amax(1) / (x.var(1, correction=0) + 1e-5).sqrt()).max().item()
    return max(TOLERANCE, 4 * torch.finfo(torch.float32).eps * lost)


def attention_tolerance(x: Tensor, biased: bool, reference, *args) -> float:
    """Return `norm_tolerance`, or more with biases.

    Biases make all pixels' q and k alike. A float32 sum of 1024 products of one sign loses up to sqrt(1024)
    roundings, 2e-6 of a logit, times what it does to the result. The reference loses as much in float32:
    twice its error is allowed where that is more still.
    """
    expected = reference(x.float().double(), *args)
    lost = (reference(x.float(), *map(as_float, args)) - expected).abs().max() / max(
        1.0, expected.abs().max().item()
    )
    return max(norm_tolerance(x), 4 * TOLERANCE if biased else 0, 2 * lost.item())


def geometry(down: tuple, across: tuple, shape: tuple[int, int]):
    """Return kernel, stride, padding, dilation and a size of image that gives a result."""
    kernel, stride, dilation = ((down[i], across[i]) for i in (0, 1, 4))
    padding = down[2], down[3], across[2], across[3]
    least = [
        d * (k - 1) + 1 - before - behind
        for k, d, before, behind in zip(kernel, dilation, padding[::2], padding[1::2], strict=True)
    ]
    return kernel, stride, padding, dilation, tuple(max(n, m) for n, m in zip(shape, least, strict=True))
