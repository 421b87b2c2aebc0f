"""Test every op by its entry in the registry; a new op needs no test of its own here."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mirl_kernels.ops
from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Quantity
from mirl_kernels.errors import BackendError
from mirl_kernels.registry import OPS, Op

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")

TOLERANCE = 1e-5  # of float32, relative to the largest result; each op's test is stricter, in float64
CHANNELS = 12
SHAPE = (2, CHANNELS, 10, 14)

ops = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def made(op: Op, density: float = 0.3, seed: int = 0) -> tuple[cpu.PackedModule, tuple, dict, Tensor]:
    """Return an op's packed form, its weights and options, and an input."""
    g = torch.Generator().manual_seed(seed)
    example = op.example(CHANNELS, density, generator=g)
    x = torch.randn(SHAPE if op.takes_images else (*op.tokens, CHANNELS), generator=g)
    packed = op.packed.from_weights(*example.weights, **example.options)
    return packed, example.weights, example.options, x


def test_every_folder_of_ops_is_in_the_registry():
    folders = {path.parent.name for path in Path(mirl_kernels.ops.__file__).parent.glob("*/reference.py")}
    assert folders == set(OPS)


@ops
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_the_kernel_computes_the_definition(op, density):
    packed, weights, options, x = made(op, density)
    expected = op.reference(x, *weights, **options)
    atol = TOLERANCE * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(packed(x), expected, atol=atol, rtol=0)


@ops
def test_an_input_of_other_channels_is_refused(op):
    packed, _, _, x = made(op)
    other = x[:, :-1] if op.takes_images else x[..., :-1]
    with pytest.raises(BackendError, match="expected"):
        packed(other)


@ops
def test_everything_that_is_counted_is_a_quantity(op):
    packed = made(op)[0]
    counts = packed.quantities(*(SHAPE[0], *SHAPE[2:]) if op.takes_images else op.tokens)
    assert counts[Quantity.CALL] == 1
    assert set(counts) <= set(Quantity)
    assert all(count >= 0 for count in counts.values())


@ops
def test_zero_weights_are_skipped(op):
    def macs(density: float) -> int:
        packed = made(op, density)[0]
        if op.takes_images:
            return packed.work(SHAPE[0], *SHAPE[2:]).macs
        return packed.quantities(*op.tokens)[Quantity.ENTRY]

    assert macs(0.1) < macs(0.4)


@ops
def test_packed_weights_are_no_state_so_no_file_can_damage_them(op):
    packed, _, _, x = made(op)
    before = packed(x)
    assert packed.state_dict() == {}
    damaged = {name: -buffer for name, buffer in packed.named_buffers()}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        packed.load_state_dict(damaged)
    assert torch.equal(packed(x), before)


@ops
def test_the_op_has_the_same_result_when_compiled_to_a_graph(op):
    """The graph is made of shapes alone: the op must say what shape its result has."""
    packed, _, _, x = made(op)
    exported = torch.export.export(packed, (x,))
    assert torch.equal(exported.module()(x), packed(x))
