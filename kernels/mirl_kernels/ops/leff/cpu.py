"""Pack LeFF for the C++ kernel, and call that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_double, c_int64, c_void_p

import torch
from torch import Tensor
from torch.nn import functional as F

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Layer, PackedMatrix, Quantity
from mirl_kernels.core.cpu.training import fits_flat
from mirl_kernels.ops.gdfn.liveness import live_after_taps


class LeffArgs(Structure):
    """Hold the argument of the kernel (``MirlLeff`` of abi.h)."""

    _fields_ = [
        ("x", c_void_p),
        ("y", c_void_p),
        ("size", cpu.Size),
        *((name, c_void_p) for name in ("linear1", "dwconv", "linear2")),
        ("eps", c_double),
        ("threads", c_int64),
    ]


@torch.library.custom_op("mirl::leff", mutates_args=())
def op(x: Tensor, matrices: Sequence[Tensor], eps: float) -> Tensor:
    """Return LeFF(x) by packed matrices.

    Args:
        x: (B, H, W, C).
        matrices: Those of linear1, dwconv and linear2.
        eps: The epsilon of the norm.
    """
    channels = PackedMatrix(matrices[0]).columns
    cpu.check_pixels(x, channels)
    x = x.contiguous()
    out = x.new_empty(x.shape)
    batch, height, width, _ = x.shape
    size = cpu.Size(batch, channels, height, width, _is_flat(height, width))
    args = LeffArgs(x.data_ptr(), out.data_ptr(), size, *map(cpu.address, matrices), eps)
    cpu.Call("leff", args, x, out, *matrices)()
    return out


@op.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def _is_flat(height: int, width: int) -> bool:
    """Return whether all rows of an image are worked on as one (``MirlSize`` of abi.h), by one thread."""
    return fits_flat(height, width) and height * width <= 64


class PackedLeFF(cpu.PackedModule):
    """Keep the surviving weights of one LeFF; hidden channels that are the same everywhere become a bias.

    Gain and bias of the norm are folded into linear1. The constructor takes what the definition, `leff`,
    takes after x.

    Raises:
        ValueError: If the weights do not belong together; where PyTorch notices first, its own error.
    """

    multiplied = ("linear1", "linear2")
    linear1: Tensor
    dwconv: Tensor
    linear2: Tensor

    def __init__(
        self,
        norm: tuple[Tensor, Tensor, float],
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None] = (None, None, None),
    ) -> None:
        super().__init__()
        linear1, dwconv, linear2 = (w.detach().flatten(1) for w in weights)
        into, taps, out = (
            Layer(w, None if b is None else b.detach())
            for w, b in zip((linear1, dwconv, linear2), biases, strict=True)
        )
        gain, shift, self.eps = norm
        self.channels = linear1.shape[1]
        varies = live_after_taps(linear1, dwconv, into.bias, None)
        read = (linear2 != 0).any(0)
        rows = (varies & read).nonzero()[:, 0]
        rows = rows[dwconv[rows].count_nonzero(1).argsort(stable=True)]  # as in `ordered_pairs` of GDFN
        packed_in, packed_taps = cpu.pack_normalised(Layer(gain, shift), into, taps, rows)
        self.register_buffer("linear1", packed_in)
        self.register_buffer("dwconv", packed_taps)
        bias = linear2.new_zeros(self.channels) if out.bias is None else out.bias
        if taps.bias is not None:
            constant = read & ~varies
            bias = bias + linear2[:, constant] @ F.gelu(taps.bias[constant])
        self.register_buffer("linear2", cpu.pack(linear2[:, rows], bias, cpu.Forms.PAIRS))
        self._expect_fit(linear1=linear1, dwconv=dwconv, linear2=linear2)

    def matrices(self) -> list[Tensor]:
        """Return the packed matrices of linear1, dwconv and linear2."""
        return [self.linear1, self.dwconv, self.linear2]

    def _fits(self) -> bool:
        linear1, dwconv, linear2 = (PackedMatrix(m).shape for m in self.matrices())
        hidden = linear1[0]
        return dwconv == (hidden, 9) and linear1[1] == self.channels and linear2 == (self.channels, hidden)

    def quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return how often a call on (batch, height, width, C) does what has a price in the cost model.

        The keys are members of `Quantity`.
        """
        if _is_flat(height, width) and cpu.LANES[cpu.isa()] == 16:
            height, width = 1, height * width
        vectors, groups = cpu.pixel_groups(batch * height, width)
        counts: Counter[str] = Counter(
            {
                Quantity.NORM: self.channels * vectors,
                Quantity.TRANSPOSED: 3 * self.channels * vectors,
                Quantity.GATE: 2 * PackedMatrix(self.linear1).rows * vectors,
                Quantity.TAP: PackedMatrix(self.dwconv).nnz * vectors,
            }
        )
        for matrix in (self.linear1, self.linear2):
            counts += cpu.product_quantities(matrix, vectors, groups)
        return counts + cpu.call_quantities(2 * self.channels * batch * height * width)

    def forward(self, x: Tensor) -> Tensor:
        """Return LeFF(x), (B, H, W, C) like x.

        Raises:
            BackendError: If the kernel does not take x.
        """
        return op(x, self.matrices(), self.eps)
