"""Train NAFNet's block by its surviving weights; only its input and what conv3 reads are kept in between."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Forms
from mirl_kernels.core.cpu.training import Pattern, Weights, fits_flat, plain, workspace
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.naf.cpu import (
    POINTERS,
    NafArgs,
    TrainingArguments,
    arguments,
    order_of_pairs,
    scratch_for,
)

Biases = Sequence[Tensor | None]


class NafVectorsArgs(Structure):
    """Name a vector of floats for each matrix, norm and scale (``MirlNafVectors`` of abi.h)."""

    _fields_ = POINTERS


class NafBackwardArgs(Structure):
    """Hold the argument of the backward kernel (``MirlNafBackward`` of abi.h)."""

    _fields_ = [
        ("naf", NafArgs),
        ("dy", cpu.Image),
        ("conv1_transposed", c_void_p),
        ("conv2_flipped", c_void_p),
        ("conv3_transposed", c_void_p),
        ("conv4_transposed", c_void_p),
        ("conv5_transposed", c_void_p),
        ("gradient", c_void_p),
        ("vectors", NafVectorsArgs),
        ("threads", c_int64),
    ]


def _read_pairs(masks: Sequence[Tensor], biased: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Return the pairs of hidden channels that conv3 reads, and others that only the channel attention does.

    A pair is dead where either half is zero for all values of what survives.
    """
    conv1, conv2, sca, conv3 = (mask.flatten(1) for mask in masks[:4])
    pairs = conv3.shape[1]
    fed = conv1.any(1) | biased[0]
    fed = fed & conv2.any(1) | biased[1]
    alive = fed[:pairs] & fed[pairs:]
    read = alive & conv3.any(0) & (sca.any(1) | biased[2])
    averaged = alive & ~read & sca[read].any(0)
    order = order_of_pairs(conv2)
    return order[read[order]], order[averaged[order]]


class TrainableNAF:
    """Run NAFNet's block (`mirl_kernels.ops.naf.naf`) with the weights that survive masks.

    Args:
        masks: Those of conv1, conv2, SCA, conv3, conv4 and conv5, bool, in the weights' shapes.
        biased: Whether each of the six has a bias.
        eps: The epsilons of both norms.
    """

    def __init__(self, masks: Sequence[Tensor], biased: Sequence[bool], eps: Sequence[float]) -> None:
        _, conv2, _, conv3, conv4, conv5 = masks
        read, averaged = _read_pairs(masks, biased)
        live = torch.cat([read, averaged])
        rows = torch.cat([live, live + conv3.shape[1]])
        fed = conv4.flatten(1).any(1) | biased[4]
        pairs = conv5.shape[1]
        inner = (fed[:pairs] & fed[pairs:] & conv5.flatten(1).any(0)).nonzero()[:, 0]
        halves = torch.stack([inner, inner + pairs], 1).flatten()

        every = torch.arange(len(conv3))
        self.rows = [rows, rows, read, every, halves, every]  # of each matrix, in the weight
        columns = [None, None, live, read, None, inner]
        forms = [Forms.EITHER, Forms.ENTRIES, Forms.ENTRIES, Forms.EITHER, Forms.EITHER, Forms.EITHER]
        parts = list(zip(masks, self.rows, columns, strict=True))
        forward = [
            Pattern.part(*part, forms=form, has_bias=bias)
            for part, form, bias in zip(parts, forms, biased, strict=True)
        ]
        back: list[Pattern | None] = [Pattern.part(*part, transposed=True) for part in parts]
        back[1] = Pattern.part(conv2, rows, torch.arange(conv2[0].numel()).flip(0), forms=Forms.ENTRIES)
        back[2] = None  # the kernel reads sca itself
        self.weights = Weights(forward, back)
        self.biased = list(biased)
        self.channels, self.live, self.stored, self.eps = len(conv3), len(live), len(read), tuple(eps)

    def __call__(
        self,
        x: Tensor,
        norms: Sequence[tuple[Tensor, Tensor]],
        weights: Sequence[Tensor],
        biases: Biases,
        beta: Tensor,
        gamma: Tensor,
    ) -> Tensor:
        """Return the block of x, differentiable once by all arguments.

        Gradients of pruned weights are zero.

        Args:
            x: (B, C, H, W) float32.
            norms: Gain and bias, (C,) each, of both norms.
            weights: In the shapes of the masks.
            biases: Those of the same six, or None where there is none.
            beta: (C,) scale of the first half.
            gamma: (C,) scale of the second half.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        if [bias is not None for bias in biases] != self.biased:
            raise BackendError("other layers have biases than when the masks were packed")
        y: Tensor = _Function.apply(self, x, *norms[0], *norms[1], beta, gamma, *weights, *biases)
        return y

    def arguments(self, x: Tensor, y: Tensor, vectors: Sequence[Tensor], kept: _Kept) -> NafArgs:
        """Return the argument of the forward kernel."""
        training = TrainingArguments(vectors, kept.sums, kept.is_flat)
        return arguments(x, y, self.weights.forward, self.eps, kept.scratch, training)


class _Kept(NamedTuple):
    """Hold what the forward kernel leaves to the backward one, and how its images are laid out."""

    scratch: Tensor
    sums: Tensor
    is_flat: bool


def _laid_out(x: Tensor, is_flat: bool) -> Tensor:
    """Return x, or a copy of it, as the kernel takes it."""
    return x.contiguous() if is_flat else cpu.with_rows(x)


def _result(x: Tensor) -> Tensor:
    """Return an uninitialised image like x, contiguous where its rows are short or do not fill vectors.

    Otherwise the channels of each of its rows lie together.
    """
    batch, channels, height, width = x.shape
    if width % 16 or fits_flat(height, width):
        return torch.empty(x.shape, dtype=torch.float32)
    return torch.empty(batch, height, channels, width, dtype=torch.float32).permute(0, 2, 1, 3)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: TrainableNAF, x: Tensor, *parameters: Tensor | None) -> Tensor:
        vectors = [plain(vector) for vector in parameters[:6] if vector is not None]
        weights = [weight for weight in parameters[6:12] if weight is not None]
        biases = parameters[12:]
        ctx.is_flat = fits_flat(*x.shape[2:]) and len(x) > 1
        x = _laid_out(x, ctx.is_flat)
        y = _result(x)
        cpu.check(x, op.channels, y, x.shape)
        ctx.op, ctx.filled = op, op.weights.fill(weights, biases)
        sums = torch.empty(len(x) * op.live, dtype=torch.float64)
        kept = _Kept(scratch_for(x, op.stored), sums, ctx.is_flat)
        ctx.save_for_backward(x, kept.scratch, sums, *vectors, *weights, *biases)
        cpu.Call("naf", op.arguments(x, y, vectors, kept))()
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        op, (x, scratch, sums, *parameters) = ctx.op, ctx.saved_tensors
        vectors, weights, biases = parameters[:6], parameters[6:12], parameters[12:]
        op.weights.fill_again(weights, ctx.filled, biases)
        dy, dx = _laid_out(dy, ctx.is_flat), _result(x)
        d_vectors = [torch.empty_like(vector) for vector in vectors]
        d_rows = [torch.empty(len(row), dtype=torch.float32) for row in op.rows]
        written = workspace(op.weights.gradient_floats)
        args = NafBackwardArgs(
            op.arguments(x, dx, vectors, _Kept(scratch, sums, ctx.is_flat)),
            cpu.image(dy),
            *map(cpu.address, op.weights.back),
            written,
            NafVectorsArgs(*(d.data_ptr() for d in (*d_rows, *d_vectors))),
        )
        cpu.Call("naf_backward", args)()
        d_biases = [
            b if b is None else torch.zeros_like(b).index_copy_(0, row, d)
            for b, row, d in zip(biases, op.rows, d_rows, strict=True)
        ]
        return None, dx, *d_vectors, *op.weights.spread(written, weights), *d_biases
