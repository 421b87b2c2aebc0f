"""Pack the block of Swin transformers for the C++ kernel, and call that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_double, c_int64, c_void_p

import torch
from torch import Tensor
from torch.nn import functional as F

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import PANEL, Layer, PackedMatrix, Quantity
from mirl_kernels.errors import BackendError

_NAMES = ("qkv", "project", "fc1", "fc2")


class SwinArgs(Structure):
    """Hold the argument of the kernel (``MirlSwin`` of abi.h)."""

    _fields_ = [
        ("x", c_void_p),
        ("y", c_void_p),
        ("size", cpu.Size),
        *((name, c_void_p) for name in (*_NAMES, "position", "added", "qk_start", "v_start")),
        ("heads", c_int64),
        ("window", c_int64),
        ("shift", c_int64),
        ("masked", c_double),
        ("eps1", c_double),
        ("eps2", c_double),
        ("threads", c_int64),
    ]


@torch.library.custom_op("mirl::swin", mutates_args=())
def op(
    x: Tensor,
    matrices: Sequence[Tensor],
    position: Tensor,
    added: Tensor | None,
    starts: Tensor,
    window: int,
    shift: int,
    masked: float,
    eps: Sequence[float],
) -> Tensor:
    """Return the block of x by packed matrices.

    Args:
        x: (B, H, W, C).
        matrices: Those of qkv and project, and of fc1 and fc2 for the whole block.
        position: (heads, keys, queries padded to a multiple of `PANEL`).
        added: (rows of qkv, pixels of a window padded likewise), added to qkv's product; None for nothing.
        starts: (2, heads + 1) int32, where the live q and k of each head begin, and its v.
        window: Side of a window.
        shift: Where windows begin.
        masked: What is added to the logits of pixels that do not attend to each other.
        eps: The epsilons of the norms.
    """
    channels = PackedMatrix(matrices[0]).columns
    cpu.check_pixels(x, channels)
    if x.shape[1] % window or x.shape[2] % window:
        raise BackendError(
            f"input is {tuple(x.shape)}; expected a height and width that the window, {window}, divides"
        )
    x = x.contiguous()
    out = x.new_empty(x.shape)
    args = SwinArgs(
        x.data_ptr(),
        out.data_ptr(),
        cpu.Size(x.shape[0], channels, *x.shape[1:3], 0),
        *map(cpu.address, matrices),
        *[None] * (len(_NAMES) - len(matrices)),
        cpu.float_address(position),
        None if added is None else cpu.float_address(added),
        *(row.data_ptr() for row in starts),
        len(position),
        window,
        shift,
        masked,
        eps[0],
        eps[-1],
    )
    cpu.Call("swin", args, x, out, position, added, starts, *matrices)()
    return out


@op.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def _folded(norm: tuple[Tensor, Tensor, float], layer: Layer) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a linear layer that includes gain and bias of the norm before it."""
    gain, shift, _ = norm
    bias = layer.weight @ shift
    return layer.weight * gain, bias if layer.bias is None else bias + layer.bias


def _by_pixel(values: Tensor) -> Tensor:
    """Return (..., window^2) as the kernel reads it: padded to a multiple of `PANEL`."""
    return F.pad(values.detach().float(), (0, -values.shape[-1] % PANEL)).contiguous()


class PackedSwin(cpu.PackedModule):
    """Keep the surviving weights of one block, or of its first half; dead channels are removed exactly.

    Gains and biases of the norms are folded into qkv and fc1, and what qkv makes of the modulator is kept as
    it is. The constructor takes what the definition, `swin`, takes after x.

    Raises:
        ValueError: If the weights do not belong together; where PyTorch notices first, its own error.
    """

    qkv: Tensor
    project: Tensor
    fc1: Tensor
    fc2: Tensor
    position: Tensor
    added: Tensor | None
    starts: Tensor

    def __init__(
        self,
        norms: Sequence[tuple[Tensor, Tensor, float]],
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        position: Tensor,
        *,
        window: int,
        shift: int = 0,
        masked: float = -100.0,
        modulator: Tensor | None = None,
    ) -> None:
        super().__init__()
        if modulator is not None and len(modulator) != window**2:
            raise ValueError(
                f"modulator is {tuple(modulator.shape)}; expected a row for each pixel of a window"
            )
        layers = [
            Layer(w.detach(), None if b is None else b.detach()) for w, b in zip(weights, biases, strict=True)
        ]
        self.multiplied = _NAMES[: len(layers)]
        self.channels, self.eps = layers[0].weight.shape[1], tuple(eps for _, _, eps in norms)
        self.window, self.shift, self.masked, self.heads = window, shift, masked, len(position)
        self._pack_attention(norms[0], layers[0], layers[1], modulator)
        if len(layers) > 2:
            self._pack_feed_forward(norms[1], layers[2], layers[3])
        self.register_buffer("position", _by_pixel(position.transpose(1, 2)))
        self._expect_fit(**dict(zip(self.multiplied, weights, strict=True)), position=position)

    def _pack_attention(
        self, norm: tuple[Tensor, Tensor, float], layer: Layer, project: Layer, modulator: Tensor | None
    ) -> None:
        """Pack the live rows of qkv, and what project reads.

        A q and its k are dead where q is zero, or where k is the same for all pixels, since it then adds the
        same to all logits of a query. A v that is the same for all pixels comes out as it is, as a bias.
        """
        weight, bias = _folded(norm, layer)
        plus = weight.new_zeros(self.window**2, self.channels) if modulator is None else modulator.detach()
        added = layer.weight @ plus.T  # to each pixel of a window
        varies = (weight != 0).any(1) | (added != 0).any(1)
        (q, k, v), (q_bias, _, v_bias) = varies.chunk(3), bias.chunk(3)
        live, read = (q | (q_bias != 0)) & k, v & (project.weight != 0).any(0)
        kept = torch.cat([live, live, read])
        scale = torch.ones_like(bias)
        scale[: self.channels] = (self.channels // self.heads) ** -0.5
        rows = (weight * scale[:, None])[kept]
        self.register_buffer("qkv", cpu.pack(rows, (bias * scale)[kept], cpu.Forms.PAIRS))
        self.register_buffer(
            "added", None if modulator is None else _by_pixel((added * scale[:, None])[kept])
        )
        constant = project.weight[:, ~read] @ v_bias[~read]
        out_bias = constant if project.bias is None else constant + project.bias
        self.register_buffer("project", cpu.pack(project.weight[:, read], out_bias, cpu.Forms.PAIRS))
        counts = torch.stack([live, read]).view(2, self.heads, -1).sum(2)
        self.register_buffer("starts", F.pad(counts.cumsum(1), (1, 0)).int().contiguous())

    def _pack_feed_forward(self, norm: tuple[Tensor, Tensor, float], fc1: Layer, fc2: Layer) -> None:
        """Pack the rows of fc1 that are not the same for all pixels, and what fc2 reads."""
        weight, bias = _folded(norm, fc1)
        live = (weight != 0).any(1) & (fc2.weight != 0).any(0)
        self.register_buffer("fc1", cpu.pack(weight[live], bias[live], cpu.Forms.PAIRS))
        constant = fc2.weight[:, ~live] @ F.gelu(bias[~live])
        out_bias = constant if fc2.bias is None else constant + fc2.bias
        self.register_buffer("fc2", cpu.pack(fc2.weight[:, live], out_bias, cpu.Forms.PAIRS))

    def matrices(self) -> list[Tensor]:
        """Return the packed matrices of qkv, project, fc1 and fc2; of the first two for a first half."""
        return [getattr(self, name) for name in self.multiplied]

    def _fits(self) -> bool:
        shapes = [PackedMatrix(m).shape for m in self.matrices()]
        qk, v = self.starts[:, -1].tolist()
        c, hidden, area = self.channels, shapes[-1][1], self.window**2
        padded = area + -area % PANEL
        return (
            shapes == [(2 * qk + v, c), (c, v), (hidden, c), (c, hidden)][: len(shapes)]
            and len(self.eps) == len(shapes) // 2
            and self.position.shape == (self.heads, area, padded)
            and 0 <= self.shift < self.window
        )

    def quantities(self, *sizes: int) -> Counter[str]:
        r"""Return how often a call on (\*sizes, C) does what has a price in the cost model.

        The keys are members of `Quantity`.
        """
        pixels, area = math.prod(sizes), self.window**2
        windows = pixels // area
        vectors, groups = cpu.pixel_groups(1, area)
        qk, v = self.starts[:, -1].tolist()
        one: Counter[str] = Counter(
            {
                Quantity.NORM: len(self.eps) * self.channels * vectors,
                Quantity.TRANSPOSED: 2 * self.channels * vectors,
                Quantity.DENSE: area * (qk + v) * vectors,
                Quantity.SCORE: area * self.heads * vectors,
            }
        )
        if len(self.eps) > 1:
            one[Quantity.GATE] = PackedMatrix(self.fc1).rows * vectors
        for matrix in self.matrices():
            one += cpu.product_quantities(matrix, vectors, groups)
        counts: Counter[str] = Counter({name: windows * count for name, count in one.items()})
        return counts + cpu.call_quantities(2 * self.channels * pixels)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return the block of x.

        Args:
            x: (B, H, W, C), or (B, H * W, C).
            size: H and W, where x does not say them.

        Raises:
            BackendError: If the kernel does not take x.
        """
        image = x if size is None else x.unflatten(1, size)
        buffers = self.matrices(), self.position, self.added, self.starts
        settings = self.window, self.shift, self.masked, self.eps
        return op(image, *buffers, *settings).view(x.shape)
