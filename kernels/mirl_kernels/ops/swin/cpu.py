"""Pack the block of Swin transformers for the C++ kernel, and call that."""

from __future__ import annotations

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
        *((name, c_void_p) for name in (*_NAMES, "position", "qk_start", "v_start")),
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
    starts: Tensor,
    window: int,
    shift: int,
    masked: float,
    eps: Sequence[float],
) -> Tensor:
    """Return the block of x by packed matrices.

    Args:
        x: (B, H, W, C).
        matrices: Those of qkv, project, fc1 and fc2.
        position: (heads, keys, queries padded to a multiple of `PANEL`).
        starts: (2, heads + 1) int32, where the live q and k of each head begin, and its v.
        window: Side of a window.
        shift: Where windows begin.
        masked: What is added to the logits of pixels that do not attend to each other.
        eps: The epsilons of both norms.
    """
    channels = PackedMatrix(matrices[0]).columns
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim != 4 or x.shape[3] != channels:
        raise BackendError(
            f"input is {x.dtype} {tuple(x.shape)} on {x.device};"
            f" expected float32 (B, H, W, {channels}) on the CPU"
        )
    if x.shape[1] % window or x.shape[2] % window or not x.numel():
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
        cpu.float_address(position),
        *(row.data_ptr() for row in starts),
        len(position),
        window,
        shift,
        masked,
        *eps,
    )
    cpu.Call("swin", args, x, out, position, starts, *matrices)()
    return out


@op.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


def _folded(norm: tuple[Tensor, Tensor, float], layer: Layer) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a linear layer that includes gain and bias of the norm before it."""
    gain, shift, _ = norm
    bias = layer.weight @ shift
    return layer.weight * gain, bias if layer.bias is None else bias + layer.bias


class PackedSwin(cpu.PackedModule):
    """Keep the surviving weights of one block; dead channels are removed exactly.

    Gains and biases of the norms are folded into qkv and fc1. The constructor takes what the definition,
    `swin`, takes after x.

    Raises:
        ValueError: If the weights do not belong together; where PyTorch notices first, its own error.
    """

    multiplied = _NAMES
    qkv: Tensor
    project: Tensor
    fc1: Tensor
    fc2: Tensor
    position: Tensor
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
    ) -> None:
        super().__init__()
        layers = [
            Layer(w.detach(), None if b is None else b.detach()) for w, b in zip(weights, biases, strict=True)
        ]
        self.channels, self.eps = layers[0].weight.shape[1], (norms[0][2], norms[1][2])
        self.window, self.shift, self.masked, self.heads = window, shift, masked, len(position)
        self._pack_attention(norms[0], layers[0], layers[1])
        self._pack_feed_forward(norms[1], layers[2], layers[3])
        by_key = position.detach().float().transpose(1, 2)
        self.register_buffer("position", F.pad(by_key, (0, -(window**2) % PANEL)).contiguous())
        self._expect_fit(**dict(zip(_NAMES, weights, strict=True)), position=position)

    def _pack_attention(self, norm: tuple[Tensor, Tensor, float], layer: Layer, project: Layer) -> None:
        """Pack the live rows of qkv, and what project reads.

        A q and its k are dead where q is zero, or where k is the same for all pixels, since it then adds the
        same to all logits of a query. A v that is the same for all pixels comes out as it is, as a bias.
        """
        weight, bias = _folded(norm, layer)
        (q, k, v), (q_bias, k_bias, v_bias) = weight.chunk(3), bias.chunk(3)
        live = ((q != 0).any(1) | (q_bias != 0)) & (k != 0).any(1)
        read = (v != 0).any(1) & (project.weight != 0).any(0)
        scale = (self.channels // self.heads) ** -0.5
        rows = torch.cat([q[live] * scale, k[live], v[read]])
        self.register_buffer(
            "qkv",
            cpu.pack(rows, torch.cat([q_bias[live] * scale, k_bias[live], v_bias[read]]), cpu.Forms.PAIRS),
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
        """Return the packed matrices of qkv, project, fc1 and fc2."""
        return [self.qkv, self.project, self.fc1, self.fc2]

    def _fits(self) -> bool:
        qkv, project, fc1, fc2 = (PackedMatrix(m).shape for m in self.matrices())
        qk, v = self.starts[:, -1].tolist()
        area = self.window**2
        return (
            qkv == (2 * qk + v, self.channels)
            and project == (self.channels, v)
            and fc1[1] == self.channels
            and fc2 == (self.channels, fc1[0])
            and self.position.shape == (self.heads, area, area + -area % PANEL)
            and 0 <= self.shift < self.window
        )

    def quantities(self, pixels: int) -> Counter[str]:
        """Return how often a call on so many pixels does what has a price in the cost model.

        The keys are members of `Quantity`.
        """
        area = self.window**2
        windows = pixels // area
        vectors, groups = cpu.pixel_groups(1, area)
        qk, v = self.starts[:, -1].tolist()
        one: Counter[str] = Counter(
            {
                Quantity.NORM: 2 * self.channels * vectors,
                Quantity.TRANSPOSED: 2 * self.channels * vectors,
                Quantity.DENSE: area * (qk + v) * vectors,
                Quantity.SCORE: area * self.heads * vectors,
                Quantity.GATE: PackedMatrix(self.fc1).rows * vectors,
            }
        )
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
        settings = self.window, self.shift, self.masked, self.eps
        return op(image, self.matrices(), self.position, self.starts, *settings).view(x.shape)
