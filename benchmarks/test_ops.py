"""Each fused op at shapes of the published network, on the C++ kernels and as PyTorch runs its reference:

    make bench-ops

An op is timed only after its result was found equal to the reference's.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mirl_kernels.conv import PackedConv
from mirl_kernels.conv import reference as conv
from mirl_kernels.gdfn import PackedGDFN
from mirl_kernels.gdfn import reference as gdfn
from mirl_kernels.mdta import PackedMDTA
from mirl_kernels.mdta import reference as mdta
from mirl_kernels.pointwise import PackedPointwise
from mirl_kernels.pointwise import reference as pointwise

Pair = tuple[Callable[[], Tensor], Callable[[], Tensor]]  # (kernel, reference) on the same input


def _weights(density: float, *shape: int) -> Tensor:
    return torch.randn(shape) * (torch.rand(shape) < density) / max(1.0, shape[1] * density) ** 0.5


def _bound(call: Callable[[], None], out: Tensor) -> Callable[[], Tensor]:
    def kernel() -> Tensor:
        call()
        return out

    return kernel


def _mdta(channels: int, side: int, density: float) -> Pair:
    x = torch.randn(1, channels, side, side)
    args = (torch.ones(channels), torch.zeros(channels), _weights(density, 3 * channels, channels, 1, 1),
            _weights(density, 3 * channels, 1, 3, 3), torch.ones(channels // 48, 1, 1),
            _weights(density, channels, channels, 1, 1))  # fmt: skip
    op, out = PackedMDTA(*args), torch.empty_like(x)
    scratch = torch.empty(op.scratch_floats(x.shape[0], *x.shape[2:]))
    return _bound(op.bind(x, out, scratch), out), lambda: mdta(x, *args)


def _gdfn(channels: int, side: int, density: float) -> Pair:
    x, hidden = torch.randn(1, channels, side, side), int(2.66 * channels)
    args = (torch.ones(channels), torch.zeros(channels), _weights(density, 2 * hidden, channels, 1, 1),
            _weights(density, 2 * hidden, 1, 3, 3), _weights(density, channels, hidden, 1, 1))  # fmt: skip
    out = torch.empty_like(x)
    return _bound(PackedGDFN(*args).bind(x, out), out), lambda: gdfn(x, *args)


def _pointwise(channels: int, side: int, density: float) -> Pair:
    x, weight = torch.randn(1, channels, side, side), _weights(density, channels, channels, 1, 1)
    out = torch.empty_like(x)
    return _bound(PackedPointwise(weight).bind(x, out), out), lambda: pointwise(x, weight)


def _conv(channels: int, side: int, density: float) -> Pair:
    x, weight = torch.randn(1, channels, side, side), _weights(density, channels // 2, channels, 3, 3)
    out = torch.empty(1, channels * 2, side // 2, side // 2)
    return _bound(PackedConv(weight, shuffle=-2).bind(x, out), out), lambda: conv(x, weight, shuffle=-2)


OPS = {"mdta": _mdta, "gdfn": _gdfn, "pointwise": _pointwise, "conv": _conv}


@pytest.mark.parametrize("density", [0.035, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("channels", "side"), [(48, 256), (96, 256), (192, 64), (384, 32)])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_op(benchmark, op: str, channels: int, side: int, density: float, backend: str) -> None:
    torch.manual_seed(0)
    kernel, reference = OPS[op](channels, side, density)
    torch.testing.assert_close(kernel(), reference(), atol=1e-4, rtol=1e-4)
    benchmark.group = f"{op} {channels} channels {side}x{side} density {density:g}"
    benchmark.pedantic(kernel if backend == "cpu" else reference, rounds=5, warmup_rounds=1)
