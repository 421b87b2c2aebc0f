"""Recognise and fuse blocks that attend within windows: SwinIR's, SCUNet's and Uformer's; see `blocks`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mirl_kernels.ops.leff import PackedLeFF
from mirl_kernels.ops.swin import PackedSwin, do_not_attend
from mirl_sparse.sparsification.block_tensors import (
    Biases,
    Expected,
    biases_of,
    conv_tensors,
    geometry_refusal,
    get,
    size_of,
    unexpected,
)
from mirl_sparse.sparsification.comparison import noise
from mirl_sparse.sparsification.layers import weight_refusal
from mirl_sparse.sparsification.target import BlockKind, FusedPart, Refusal

Norm = tuple[Tensor, Tensor, float]  # gain (C,), bias (C,) and epsilon


class SwinWeights(NamedTuple):
    """Hold the weights of a block as `PackedSwin` takes them; C channels, h hidden ones."""

    norms: tuple[Norm, ...]  # both, or the first
    weights: tuple[Tensor, ...]  # qkv (3C, C), project (C, C); fc1 (h, C), fc2 (C, h)
    biases: Biases
    position: Tensor  # (heads, window^2, window^2)
    window: int
    shift: int
    masked: float
    modulator: Tensor | None = None  # (window^2, C)


class LeWinWeights(NamedTuple):
    """Hold the weights of Uformer's block: those of its attention, and of LeFF as `PackedLeFF` takes them."""

    attention: SwinWeights
    norm: Norm
    weights: tuple[Tensor, ...]  # linear1 (h, C), dwconv (h, 1, 3, 3), linear2 (C, h)
    biases: Biases


class _Names(NamedTuple):
    """Hold where a block has its norms, its linear layers, what is between the last two, and q's factor."""

    norms: tuple[str, str]
    layers: tuple[str, str, str, str]
    activation: str
    scale: str


_MASKED = -100.0  # what SwinIR adds to logits of pixels that do not attend to each other
_SWIN = _Names(("norm1", "norm2"), ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"), "mlp.act", "attn.scale")
_SCUNET = _Names(
    ("ln1", "ln2"), ("msa.embedding_layer", "msa.linear", "mlp.0", "mlp.2"), "mlp.1", "msa.scale"
)


def find_swin(m: nn.Module) -> SwinWeights | Refusal | None:
    """Find the weights of a block of Swin transformers, as SwinIR has it (ICCVW 2021).

    Args:
        m: Any module; it resembles such a block where it has ``attn.relative_position_bias_table``,
            ``window_size`` and ``shift_size``.

    Returns:
        The weights, the reason why it is no such block, or None where it does not resemble one.
    """
    found = _windows(m, "window_size")
    if found is None or isinstance(found, Refusal):
        return found
    position, window, shift = found
    if reason := _mask_refusal(m, window, shift):
        return Refusal(reason)
    return _weights(m, _SWIN, position, (window, shift, _MASKED))


def find_lewin(m: nn.Module) -> LeWinWeights | Refusal | None:
    """Find the weights of Uformer's block, whose feed-forward layer is LeFF (CVPR 2022, figure 2).

    Args:
        m: Any module; it resembles such a block where it has ``attn.relative_position_bias_table``,
            ``win_size`` and ``shift_size``.

    Returns:
        The weights, the reason why it is no such block, or None where it does not resemble one.
    """
    found = _windows(m, "win_size")
    if found is None or isinstance(found, Refusal):
        return found
    position, window, shift = found
    c, h = size_of(m, "attn.proj.weight", 0), size_of(m, "mlp.linear2.0.weight", 1)
    linear = "attn.qkv.to_q", "attn.qkv.to_kv", "attn.proj", "mlp.linear1.0", "mlp.linear2.0"
    taps = "mlp.dwconv.0"
    if reason := (
        ("it has a cross_modulator" if get(m, "cross_modulator") is not None else None)
        or _norms_refusal(m, ("norm1", "norm2"))
        or unexpected(m, _norm_tensors(("norm1", "norm2"), c))
        or unexpected(m, _linear_tensors(linear, ((c, c), (2 * c, c), (c, c), (h, c), (c, h))))
        or unexpected(m, conv_tensors(taps, h, 1, 3))
        or unexpected(m, [Expected("modulator.weight", (window**2, c), optional=True)])
        or geometry_refusal(m, [taps])
        or _activation_refusal(m, "mlp.linear1.1")
        or _activation_refusal(m, "mlp.dwconv.1")
        or _heads_refusal(m, "attn.scale", len(position), c)
    ):
        return Refusal(reason)
    q, kv, project, *_ = (get(m, name) for name in linear)
    biases = [part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in (q, kv)]
    attention = SwinWeights(
        (_norm(m, "norm1"),),
        (torch.cat([q.weight, kv.weight]), project.weight),
        (torch.cat(biases), project.bias),
        position,
        window,
        shift,
        _MASKED,
        get(m, "modulator.weight"),
    )
    leff = linear[3], taps, linear[4]
    weights = tuple(get(m, f"{name}.weight") for name in leff)
    return LeWinWeights(attention, _norm(m, "norm2"), weights, biases_of(m, leff))


def _windows(m: nn.Module, side: str) -> tuple[Tensor, int, int] | Refusal | None:
    """Return what a block adds to logits (`_position`), and its windows' side and shift, if it has these."""
    table, window, shift = get(m, "attn.relative_position_bias_table"), get(m, side), get(m, "shift_size")
    if not isinstance(table, Tensor) or not isinstance(window, int) or not isinstance(shift, int):
        return None
    position = _position(m, table, window, shift)
    return position if isinstance(position, Refusal) else (position, window, shift)


def _position(m: nn.Module, table: Tensor, window: int, shift: int) -> Tensor | Refusal:
    """Return what a table of relative positions adds to logits, (heads, window^2, window^2)."""
    if not 0 <= shift < window:
        return Refusal(f"its shift is {shift}; expected 0 to {window - 1}, less than the side of a window")
    area, distances = window**2, (2 * window - 1) ** 2
    index = get(m, "attn.relative_position_index")
    if not isinstance(index, Tensor) or index.shape != (area, area):
        return Refusal("it has no attn.relative_position_index of the pixels of a window")
    if table.ndim != 2 or len(table) != distances:
        return Refusal(
            f"attn.relative_position_bias_table has shape {tuple(table.shape)}; expected"
            f" {distances} rows, one for each distance"
        )
    if index.is_floating_point() or index.min() < 0 or index.max() >= distances:
        return Refusal(f"attn.relative_position_index holds other numbers than 0 to {distances - 1}")
    if reason := weight_refusal(table, "attn.relative_position_bias_table"):
        return Refusal(reason)
    return table.detach()[index.flatten()].view(area, area, -1).permute(2, 0, 1)


def find_scunet(m: nn.Module) -> SwinWeights | Refusal | None:
    """Find the weights of the half of SCUNet's block that attends within windows (Zhang et al., MIR 2023).

    Args:
        m: Any module; it resembles such a half where it has ``msa.relative_position_params``.

    Returns:
        The weights, the reason why it is no such half, or None where it does not resemble one.
    """
    params, window = get(m, "msa.relative_position_params"), get(m, "msa.window_size")
    if not isinstance(params, Tensor) or not isinstance(window, int):
        return None
    if reason := weight_refusal(params, "msa.relative_position_params"):
        return Refusal(reason)
    heads, side = len(params), 2 * window - 1
    if params.shape != (heads, side, side):
        return Refusal(
            f"msa.relative_position_params has shape {tuple(params.shape)}; expected {(heads, side, side)}"
        )
    row, column = (part.flatten() for part in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    apart = (t[:, None] - t[None] + window - 1 for t in (row, column))
    position = params.detach().flatten(1)[:, side * next(apart) + next(apart)]
    shift = 0 if get(m, "msa.type") == "W" else window // 2
    return _weights(m, _SCUNET, position, (window, shift, float("-inf")))


def _weights(
    m: nn.Module, names: _Names, position: Tensor, windows: tuple[int, int, float]
) -> SwinWeights | Refusal:
    """Return the weights of a block by their names; ``windows`` is their side, shift and what masks."""
    channels, hidden = size_of(m, f"{names.layers[1]}.weight", 0), size_of(m, f"{names.layers[2]}.weight", 0)
    sizes = (3 * channels, channels), (channels, channels), (hidden, channels), (channels, hidden)
    if reason := (
        _norms_refusal(m, names.norms)
        or unexpected(m, [*_norm_tensors(names.norms, channels), *_linear_tensors(names.layers, sizes)])
        or _activation_refusal(m, names.activation)
        or _heads_refusal(m, names.scale, len(position), channels)
    ):
        return Refusal(reason)
    norms = tuple(_norm(m, name) for name in names.norms)
    weights = tuple(get(m, f"{name}.weight") for name in names.layers)
    return SwinWeights(norms, weights, biases_of(m, names.layers), position, *windows)


def _heads_refusal(m: nn.Module, scale: str, heads: int, channels: int) -> str | None:
    """Return why channels do not fall into heads, or q is not scaled for the channels of one."""
    if not heads or channels % heads:
        return f"it has {heads} heads, which do not divide {channels} channels"
    value, expected = get(m, scale), (channels // heads) ** -0.5
    if not isinstance(value, float) or not math.isclose(value, expected):
        return f"{scale} is {value}; expected {expected:.4g}, for the channels of a head"
    return None


def _norm(m: nn.Module, name: str) -> Norm:
    norm = get(m, name)
    return norm.weight, norm.bias, norm.eps


def _mask_refusal(m: nn.Module, window: int, shift: int) -> str | None:
    """Return why the mask that SwinIR's block keeps for one size of images is not that of other sizes."""
    mask, size = get(m, "attn_mask"), get(m, "input_resolution")
    if mask is None:
        return None
    if not isinstance(size, tuple) or len(size) != 2 or any(side % window for side in size):
        return f"its input_resolution is {size}; expected height and width, multiples of the window"
    expected = _MASKED * do_not_attend(size[0], size[1], window, shift)
    return None if torch.equal(mask, expected) else "attn_mask is not what its shift asks for"


def _norm_tensors(names: Sequence[str], channels: int) -> list[Expected]:
    return [Expected(f"{name}.{part}", (channels,)) for name in names for part in ("weight", "bias")]


def _linear_tensors(names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> list[Expected]:
    tensors = []
    for name, size in zip(names, sizes, strict=True):
        tensors += [Expected(f"{name}.weight", size), Expected(f"{name}.bias", size[:1], optional=True)]
    return tensors


def _norms_refusal(m: nn.Module, names: tuple[str, str]) -> str | None:
    kinds = {name: type(get(m, name)) for name in names}
    return next(
        (f"{name} is {t.__name__}; expected LayerNorm" for name, t in kinds.items() if t is not nn.LayerNorm),
        None,
    )


def _activation_refusal(m: nn.Module, name: str) -> str | None:
    activation = get(m, name)
    if isinstance(activation, nn.GELU) and activation.approximate == "none":
        return None
    return f"{name} is {activation}; expected GELU()"


def _fuse(weights: SwinWeights) -> PackedSwin:
    return PackedSwin(
        weights.norms,
        weights.weights,
        weights.biases,
        weights.position,
        window=weights.window,
        shift=weights.shift,
        masked=weights.masked,
        modulator=weights.modulator,
    )


class FusedLeWin(nn.Module):
    """Run Uformer's block by two ops.

    Args:
        weights: Its weights.
    """

    def __init__(self, weights: LeWinWeights) -> None:
        super().__init__()
        self.attention, self.feed_forward = _fuse(weights.attention), PackedLeFF(*weights[1:])

    def forward(self, x: Tensor, mask: None = None) -> Tensor:
        """Return the block of x.

        Args:
            x: (B, side^2, C), of a square image.
            mask: None; with a mask, the dense block runs.
        """
        side = int(math.sqrt(x.shape[1]))  # torch.compile knows no isqrt
        image: Tensor = self.feed_forward(self.attention(x.unflatten(1, (side, side))))
        return image.flatten(1, 2)

    def quantities(self, batch: int, tokens: int) -> Counter[str]:
        """Return how often a call on (batch, tokens, C) does what has a price in the cost model."""
        side = math.isqrt(tokens)
        return self.attention.quantities(batch, tokens) + self.feed_forward.quantities(batch, side, side)


def _image(weights: SwinWeights, batch: int, height: int, width: int) -> tuple[Tensor]:
    """Return the argument of SCUNet's half, (B, H, W, C)."""
    height, width = (-(-side // weights.window) * weights.window for side in (height, width))
    return (noise(batch, height, width, weights.weights[0].shape[1]),)


def _tokens(weights: SwinWeights, batch: int, height: int, width: int) -> tuple[Any, ...]:
    """Return the arguments of SwinIR's block, (B, H * W, C) and (H, W)."""
    (image,) = _image(weights, batch, height, width)
    return image.flatten(1, 2), tuple(image.shape[1:3])


def _square(weights: LeWinWeights, batch: int, height: int, width: int) -> tuple[Any, ...]:
    """Return the arguments of Uformer's block: tokens of a square image, and no mask."""
    side = max(height, width)
    (image,) = _image(weights.attention, batch, side, side)
    return image.flatten(1, 2), None


_PART = FusedPart(
    "", "fused Swin block", "norms, attention within windows, feed-forward layer and residuals in one op"
)
WINDOW_BLOCKS = (
    BlockKind("a Swin block", find_swin, _fuse, _tokens, (_PART,), dimensions=3, positional=(2,)),
    BlockKind("a block of SCUNet", find_scunet, _fuse, _image, (_PART,)),
    BlockKind(
        "a block of Uformer",
        find_lewin,
        FusedLeWin,
        _square,
        (
            FusedPart(
                "attn", "fused window attention", "norm, attention within windows and residual in one op"
            ),
            FusedPart("mlp", "fused LeFF", "norm, linear layers, taps and residual in one op"),
        ),
        dimensions=3,
        positional=(1, 2),
    ),
)
