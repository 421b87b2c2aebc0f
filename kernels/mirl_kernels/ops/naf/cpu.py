"""Pack NAFNet's block for the C++ kernel, and call that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_double, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Layer, PackedMatrix, Quantity
from mirl_kernels.ops.gdfn.liveness import live_after_taps

_NAMES = ("conv1", "conv2", "sca", "conv3", "conv4", "conv5")
# Of the structures of abi.h: a pointer for each matrix, and for each vector of the norms and scales.
POINTERS = [(name, c_void_p) for name in (*_NAMES, "gain1", "offset1", "gain2", "offset2", "beta", "gamma")]


class NafArgs(Structure):
    """Hold the argument of the kernel (``MirlNaf`` of abi.h)."""

    _fields_ = [
        ("x", cpu.Image),
        ("y", cpu.Image),
        ("size", cpu.Size),
        *POINTERS,
        ("eps1", c_double),
        ("eps2", c_double),
        ("scratch", c_void_p),
        ("sums", c_void_p),
        ("threads", c_int64),
    ]


class TrainingArguments(NamedTuple):
    """Hold what the kernel takes in training.

    Attributes:
        vectors: Gain and bias of the first norm, of the second one, beta and gamma.
        sums: (B, pairs) float64, for the sums that the backward kernel reads.
        flat: Whether all rows of an image are worked on as one (``MirlSize`` of abi.h).
    """

    vectors: Sequence[Tensor]
    sums: Tensor
    flat: bool


def arguments(
    x: Tensor,
    out: Tensor,
    matrices: Sequence[Tensor],
    eps: Sequence[float],
    scratch: Tensor | None,
    training: TrainingArguments | None = None,
) -> NafArgs:
    """Return the argument of the kernel.

    Args:
        x: (B, C, H, W).
        out: The result, of the same shape; it may be x.
        matrices: The packed matrices of conv1, conv2, sca, conv3, conv4 and conv5.
        eps: The epsilons of both norms.
        scratch: The scratch memory.
        training: What it takes in training; None where the vectors are folded into the matrices.
    """
    vectors = [None] * 6 if training is None else [vector.data_ptr() for vector in training.vectors]
    return NafArgs(
        cpu.image(x),
        cpu.image(out),
        cpu.size(x, training is not None and training.flat),
        *map(cpu.address, matrices),
        *vectors,
        *eps,
        cpu.optional_address(scratch),
        None if training is None else training.sums.data_ptr(),
    )


def prepare(
    x: Tensor, out: Tensor, matrices: Sequence[Tensor], eps: Sequence[float], scratch: Tensor | None
) -> cpu.Call:
    """Return the call that computes ``out`` from x; the arguments are those of `arguments`."""
    return cpu.Call("naf", arguments(x, out, matrices, eps, scratch), x, out, scratch, *matrices)


@torch.library.custom_op("mirl::naf", mutates_args=())
def op(x: Tensor, matrices: Sequence[Tensor], eps: Sequence[float]) -> Tensor:
    """Return NAFNet's block of x by packed matrices.

    Args:
        x: (B, C, H, W).
        matrices: Those of conv1, conv2, sca, conv3, conv4 and conv5.
        eps: The epsilons of both norms.
    """
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape)
    cpu.check(x, PackedMatrix(matrices[0]).columns, out, x.shape)
    conv3, conv5 = PackedMatrix(matrices[3]), PackedMatrix(matrices[5])
    for last in (conv3, conv5):
        last.expect(x.shape[1])
    prepare(x, out, matrices, eps, scratch_for(x, conv3.columns))()
    return out


@op.register_fake
def _(x: Tensor, matrices: Sequence[Tensor], eps: Sequence[float]) -> Tensor:
    return x.new_empty(x.shape)


def scratch_for(x: Tensor, stored: int) -> Tensor:
    """Return scratch memory for an image x of which conv3 reads so many hidden channels."""
    return x.new_empty(x.shape[0] * x.shape[2] * cpu.padded(x.shape[3]) * stored)


def order_of_pairs(taps: Tensor) -> Tensor:
    """Return an order of the pairs of hidden channels in which those of equally many taps follow each other.

    With loops of equal length side by side the processor foresees their ends.

    Args:
        taps: (2 * pairs, 9), the weights of conv2 or their mask.
    """
    first, second = taps.count_nonzero(1).chunk(2)
    return (first * 1000 + second).argsort(stable=True)


def _nonzero_rows(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return which rows of a 1x1 layer are not zero everywhere, bool."""
    return (weight != 0).any(1) if bias is None else (weight != 0).any(1) | (bias != 0)


class PackedNAF(cpu.Packed):
    """Keep the surviving weights of one block; dead pairs are removed exactly.

    Gains and biases of the norms are folded into conv1 and conv4, beta and gamma into conv3 and conv5. The
    constructor takes what the definition, `naf`, takes after x.

    Raises:
        ValueError: If the weights do not belong together; where PyTorch notices first, its own error.
    """

    multiplied = ("conv1", "conv3", "conv4", "conv5")
    conv1: Tensor
    conv2: Tensor
    sca: Tensor
    conv3: Tensor
    conv4: Tensor
    conv5: Tensor

    def __init__(
        self,
        norms: Sequence[tuple[Tensor, Tensor, float]],
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        beta: Tensor,
        gamma: Tensor,
    ) -> None:
        super().__init__()
        flat = [w.detach().flatten(1) for w in weights]
        self.channels, self.eps = flat[0].shape[1], (norms[0][2], norms[1][2])
        layers = [Layer(w, b) for w, b in zip(flat, biases, strict=True)]
        self._pack_first(Layer(*norms[0][:2]), layers[:4], beta)
        self._pack_second(norms[1][0], norms[1][1], layers[4:], gamma)
        self._expect_fit(**dict(zip(_NAMES, flat, strict=True)))

    def _pack_first(self, norm: Layer, layers: Sequence[Layer], beta: Tensor) -> None:
        """Pack the half with the depthwise convolution and the channel attention.

        A pair is dead when either half is zero. Those that conv3 reads, scaled by something, are stored. The
        means of others may still count in the scale of those.
        """
        conv1, conv2, sca, (weight3, bias3) = layers
        weight3 = weight3 * beta[:, None]
        pairs = weight3.shape[1]
        fed = live_after_taps(conv1.weight, conv2.weight, conv1.bias, conv2.bias)
        alive = fed[:pairs] & fed[pairs:]
        stored = alive & _nonzero_rows(*sca) & (weight3 != 0).any(0)
        averaged = alive & (sca.weight[stored] != 0).any(0) & ~stored
        order = order_of_pairs(conv2.weight)
        read = order[stored[order]]
        live = torch.cat([read, order[averaged[order]]])
        packed1, packed2 = cpu.pack_normalised(norm, conv1, conv2, torch.cat([live, live + pairs]))
        self.register_buffer("conv1", packed1)
        self.register_buffer("conv2", packed2)
        scale_bias = None if sca.bias is None else sca.bias[read]
        self.register_buffer("sca", cpu.pack(sca.weight[read][:, live], scale_bias))
        self.register_buffer("conv3", cpu.pack(weight3[:, read], None if bias3 is None else bias3 * beta))

    def _pack_second(self, gain: Tensor, shift: Tensor, layers: Sequence[Layer], gamma: Tensor) -> None:
        """Pack the half of 1x1 convolutions."""
        (weight4, bias4), (weight5, bias5) = layers
        weight5 = weight5 * gamma[:, None]
        pairs = weight5.shape[1]
        fed = _nonzero_rows(weight4, bias4)
        live = (fed[:pairs] & fed[pairs:] & (weight5 != 0).any(0)).nonzero()[:, 0]
        rows = torch.stack([live, live + pairs], 1).flatten()
        offset = weight4 @ shift if bias4 is None else weight4 @ shift + bias4
        self.register_buffer("conv4", cpu.pack(weight4[rows] * gain, offset[rows]))
        self.register_buffer("conv5", cpu.pack(weight5[:, live], None if bias5 is None else bias5 * gamma))

    def matrices(self) -> list[Tensor]:
        """Return the packed matrices of conv1, conv2, sca, conv3, conv4 and conv5."""
        return [self.conv1, self.conv2, self.sca, self.conv3, self.conv4, self.conv5]

    def _fits(self) -> bool:
        shapes = (PackedMatrix(m).shape for m in self.matrices())
        (hidden, channels), taps, sca, conv3, (wide, inner), conv5 = shapes
        first = channels == self.channels and taps == (hidden, 9) and sca == (conv3[1], hidden // 2)
        return first and inner == channels and conv3[0] == channels and conv5 == (channels, wide // 2)

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        """Return how many floats the channels that conv3 reads take in a (batch, C, height, width) image."""
        return PackedMatrix(self.conv3).columns * batch * height * cpu.padded(width)

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """Return what a call on (batch, C, height, width) must do.

        What conv3 reads is written and read between the passes over x.
        """
        pixels, stored = batch * height * width, PackedMatrix(self.conv3).columns
        nnz = sum(PackedMatrix(m).nnz for m in self.matrices()) - PackedMatrix(self.sca).nnz
        return cpu.Work(nnz * pixels, (12 * self.channels + 8 * stored) * pixels + 8 * nnz)

    def kernel_quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return the quantities of the kernel itself."""
        vectors, groups = cpu.pixel_groups(batch * height, width)
        counts: Counter[str] = Counter(
            {
                Quantity.NORM: 2 * self.channels * vectors,
                Quantity.TAP: PackedMatrix(self.conv2).nnz * vectors,
                Quantity.LIVE_V: PackedMatrix(self.conv2).rows // 2 * vectors,
            }
        )
        for matrix in (self.conv1, self.conv3, self.conv4, self.conv5):
            counts += cpu.product_quantities(matrix, vectors, groups)
        return counts

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """Return the call that computes ``out`` from x, both (B, C, H, W), possibly the same.

        Args:
            x: The input.
            out: The result.
            scratch: At least `scratch_floats` floats.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        cpu.check(x, self.channels, out, x.shape, scratch, self.scratch_floats(x.shape[0], *x.shape[2:]))
        return prepare(x, out, self.matrices(), self.eps, scratch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block of x.

        Raises:
            BackendError: If the kernel does not take x.
        """
        return op(x, self.matrices(), self.eps)
