"""The ops of a sparsified network are well-behaved ops of PyTorch."""

import pytest
import torch
from sparsifying import rand, sparsify
from torch import Tensor, nn

from mirl_kernels.errors import BackendError
from mirl_kernels.ops.block import PackedBlock
from mirl_kernels.ops.conv import PackedConv
from mirl_kernels.ops.conv_transpose import PackedConvTranspose
from mirl_kernels.ops.depthwise import PackedDepthwise
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.linear import PackedLinear
from mirl_kernels.ops.mdta import PackedMDTA
from mirl_kernels.ops.naf import PackedNAF
from mirl_kernels.ops.pointwise import PackedPointwise
from mirl_kernels.ops.prompt import PackedPrompt


def _ops() -> list[tuple[nn.Module, Tensor]]:
    w = lambda *shape: rand(*shape) * (rand(*shape) > 0.5)  # noqa: E731
    x = rand(2, 4, 9, 11)
    ones, zeros = torch.ones(4), torch.zeros(4)
    return [
        (PackedConv(w(6, 4, 3, 3), rand(6), (2, 1), (1, 1, 0, 2)), x),
        (PackedConvTranspose(w(4, 6, 3, 3), rand(6), 2, (1, 1), (1, 1)), x),
        (PackedDepthwise(w(4, 1, 3, 3), rand(4)), x),
        (PackedPointwise(w(5, 4, 1, 1), rand(5)), x),
        (PackedLinear(w(5, 11), rand(5)), x),
        (PackedGDFN(ones, zeros, w(12, 4, 1, 1), w(12, 1, 3, 3), w(4, 6, 1, 1)), x),
        (PackedMDTA(ones, None, w(12, 4, 1, 1), w(12, 1, 3, 3), torch.ones(2, 1, 1), w(4, 4, 1, 1)), x),
        (
            PackedBlock(
                PackedMDTA(ones, None, w(12, 4, 1, 1), w(12, 1, 3, 3), torch.ones(2, 1, 1), w(4, 4, 1, 1)),
                PackedGDFN(ones, zeros, w(12, 4, 1, 1), w(12, 1, 3, 3), w(4, 6, 1, 1)),
            ),
            x,
        ),
        (
            PackedNAF(
                [(ones, zeros, 1e-6)] * 2,
                [w(8, 4, 1, 1), w(8, 1, 3, 3), w(4, 4, 1, 1), w(4, 4, 1, 1), w(12, 4, 1, 1), w(4, 6, 1, 1)],
                [None, rand(8), None, rand(4), None, None],
                rand(4),
                rand(4),
            ),
            x,
        ),
        (PackedPrompt(w(3, 4), rand(3), rand(1, 3, 5, 4, 4), w(5, 5, 3, 3)), x),
    ]


@pytest.mark.parametrize(
    ("op", "x"), _ops(), ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else ""
)
def test_ops_pass_the_checks_of_torch_library(op, x):
    """torch.library.opcheck on every call that the module makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "mirl":
                seen.append((func, args))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Record():
        op(x)
    ((func, args),) = seen
    assert set(torch.library.opcheck(func, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("op", "x"), _ops(), ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else ""
)
def test_ops_take_images_of_any_layout(op, x):
    for layout in (
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.contiguous(memory_format=torch.channels_last),
        x[:, :, :1].expand_as(x),
        x[:1, :, :, ::2],
    ):
        if not isinstance(op, PackedLinear) or layout.shape[-1] == x.shape[-1]:
            assert torch.equal(op(layout), op(layout.contiguous()))


@pytest.mark.parametrize(
    ("op", "x"), _ops(), ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else ""
)
def test_ops_refuse_other_dtypes_and_shapes(op, x):
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        with pytest.raises(BackendError, match=f"{dtype}.*expected float32"):
            op(x.to(dtype))
    with pytest.raises(BackendError, match="expected"):
        op(x[..., :3, :2] if isinstance(op, PackedLinear) else x[:, :3])
    assert op.to("meta")(x.to("meta")).device.type == "meta"  # as any module's: shapes only


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 3, 5), nn.Conv2d(3, 3, 5, groups=3), nn.ConvTranspose2d(3, 3, 2, 2, 3)]
)
def test_an_image_smaller_than_the_kernel_is_refused(layer):
    sparsified = sparsify(nn.Sequential(layer))
    for side in (3, 2):
        with pytest.raises(BackendError, match="is smaller than the kernel"):
            sparsified(rand(1, 3, side, side))
