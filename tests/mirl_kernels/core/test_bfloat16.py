"""Products of bfloat16 numbers: by each unit of the processor, and in float32, which is right anywhere."""

import os
import subprocess
import sys
from functools import cache

import pytest
import torch
from op_checks import check, noise, weights
from torch.nn.functional import conv2d

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import packed_matrix
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.registry import OPS

# Of float32 sums, relative to the largest result; what is rounded is rounded in the definition as well.
EXACT = 1e-6
ROUNDED = 2**-8  # a bfloat16 number is off by at most half of this


@pytest.fixture(autouse=True)
def _any_density(monkeypatch):
    monkeypatch.setattr(packed_matrix, "TILES", 0.0)
    monkeypatch.setattr(packed_matrix, "VECTORS", 0.0)


def rounded(x):
    return x.bfloat16().double()


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (33, 17), (48, 40), (96, 100), (200, 64)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (3, 16), (2, 75)])
def test_a_product_is_exact_for_rounded_factors(inputs, outputs, size):
    generator = torch.Generator().manual_seed(inputs)
    weight, bias = weights((outputs, inputs, 1, 1), 0.4, generator), noise((outputs,), generator)
    x = noise((2, inputs, *size), generator).float().double()
    op = PackedPointwise(weight.float(), bias.float())
    op.to_bfloat16()
    (chunk,) = cpu.PackedMatrix(op.packed).chunks
    assert (chunk.tiles > 0) == (chunk.nnz > 0)
    expected = conv2d(rounded(x), rounded(weight.float()), bias.float().double())
    check(op, expected, x, tolerance=EXACT)


def test_a_convolution_in_chunks_is_exact_for_rounded_factors():
    generator = torch.Generator().manual_seed(0)
    weight, x = weights((20, 30, 3, 3), 0.5, generator), noise((1, 30, 9, 21), generator).float().double()
    op = PackedConv(weight.float())
    op.to_bfloat16()
    assert len(cpu.PackedMatrix(op.packed).chunks) > 1
    check(op, conv2d(rounded(x), rounded(weight.float()), padding=1), x, tolerance=EXACT)


@pytest.mark.parametrize("name", ["mdta", "gdfn", "block", "naf", "prompt"])
def test_blocks_are_as_far_off_as_rounding_is(name):
    op, generator = OPS[name], torch.Generator().manual_seed(1)
    taps = () if name in ("naf", "prompt") else (0.5,)
    example = op.example(40, 0.5, *taps, generator=generator)
    packed = op.packed.from_weights(*example.weights, **example.options)
    x = torch.randn(1, 40, 13, 37, generator=generator)
    exact = packed(x)
    packed.to_bfloat16()
    off = (packed(x) - exact).abs().max() / exact.abs().max()
    assert 0 < off < 8 * ROUNDED


def test_infinite_and_absent_numbers_stay_what_they_are():
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, 1.0]).view(1, 1, 1, 5)
    x.view(torch.int32)[0, 0, 0, 2] = 0x7FFFFFFF  # the NaN that rounding upwards would carry over
    op = PackedPointwise(torch.ones(1, 1, 1, 1))
    op.to_bfloat16()
    assert op(x).flatten().tolist()[:2] == [torch.inf, -torch.inf]
    assert op(x).isnan().flatten().tolist() == [False, False, True, False, False]


def test_matrices_that_are_nearly_empty_stay_float32(monkeypatch):
    monkeypatch.setattr(packed_matrix, "TILES", 0.15)
    monkeypatch.setattr(packed_matrix, "VECTORS", 0.3)
    weight = torch.zeros(10, 10)
    weight[0] = 1 / 3
    packed = cpu.to_bfloat16(cpu.pack(weight, torch.ones(10)))
    (chunk,) = cpu.PackedMatrix(packed).chunks
    assert chunk.tiles == 0
    assert torch.equal(chunk.to_dense(), weight)
    assert torch.equal(chunk.bias, torch.ones(10))


# Prints the bits of a block's result; the numbers are such that no sum is too small for AMX, which takes what
# is below 1e-38 for zero.
PROGRAM = """
import hashlib, torch
from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import packed_matrix
packed_matrix.TILES = packed_matrix.VECTORS = 0.0
from mirl_kernels.registry import OPS
generator = torch.Generator().manual_seed(2)
example = OPS["block"].example(48, 0.6, 0.6, generator)
op = OPS["block"].packed.from_weights(*example.weights, **example.options)
op.to_bfloat16()
result = op(torch.randn(1, 48, 11, 70, generator=generator))
print(cpu.bfloat16_unit().name, hashlib.sha256(result.numpy().tobytes()).hexdigest())
"""


@cache
def result_of(unit):
    """Return the unit in use when one is asked for, and a digest of a block's result."""
    env = {**os.environ, "MIRL_CPU_BFLOAT16": unit}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.native
def test_amx_and_float32_give_the_same_bits():
    unit, digest = result_of("tiles")
    if unit != "TILES":
        pytest.skip("this processor has no AMX")
    assert digest == result_of("none")[1]


@pytest.mark.native
@pytest.mark.parametrize(
    ("isa", "unit"), [("", "none"), ("", "vector"), ("avx2", "none"), ("portable", "none")]
)
def test_other_units_and_builds_pass_these_tests(isa, unit):
    if os.environ.get("MIRL_CPU_BFLOAT16"):
        pytest.skip("this is such a run")
    if result_of(unit)[0] != unit.upper():
        pytest.skip("this processor has no AVX512_BF16")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, "-p", "no:cacheprovider"],
        env={**os.environ, "MIRL_CPU_ISA": isa, "MIRL_CPU_BFLOAT16": unit},
        capture_output=True,
        text=True,
    )
    if "which this processor cannot run" in done.stdout + done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stdout[-3000:]
