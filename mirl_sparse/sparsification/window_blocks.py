"""Recognise and fuse blocks that attend within windows: SwinIR's and SCUNet's; see `blocks`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mirl_kernels.ops.swin import PackedSwin, do_not_attend
from mirl_sparse.sparsification.block_tensors import Biases, Expected, biases_of, get, size_of, unexpected
from mirl_sparse.sparsification.comparison import noise
from mirl_sparse.sparsification.layers import weight_refusal
from mirl_sparse.sparsification.target import BlockKind, FusedPart, Refusal


class SwinWeights(NamedTuple):
    """Hold the weights of a block as `PackedSwin` takes them; C channels, h hidden ones."""

    norms: tuple[tuple[Tensor, Tensor, float], ...]  # gain (C,), bias (C,) and epsilon of both
    weights: tuple[Tensor, ...]  # qkv (3C, C), project (C, C), fc1 (h, C), fc2 (C, h)
    biases: Biases
    position: Tensor  # (heads, window^2, window^2)
    window: int
    shift: int
    masked: float


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
    table, window, shift = (
        get(m, "attn.relative_position_bias_table"),
        get(m, "window_size"),
        get(m, "shift_size"),
    )
    if not isinstance(table, Tensor) or not isinstance(window, int) or not isinstance(shift, int):
        return None
    heads, area = size_of(m, "attn.relative_position_bias_table", 1), window**2
    index = get(m, "attn.relative_position_index")
    if not isinstance(index, Tensor) or index.shape != (area, area):
        return Refusal("it has no attn.relative_position_index of the pixels of a window")
    if table.shape != ((2 * window - 1) ** 2, heads):
        return Refusal(
            f"attn.relative_position_bias_table has shape {tuple(table.shape)}; expected"
            f" {((2 * window - 1) ** 2, heads)}"
        )
    if reason := weight_refusal(table, "attn.relative_position_bias_table") or _mask_refusal(
        m, window, shift
    ):
        return Refusal(reason)
    position = table.detach()[index.flatten()].view(area, area, heads).permute(2, 0, 1)
    return _weights(m, _SWIN, position, (window, shift, _MASKED))


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
        or unexpected(m, _tensors(names, sizes))
        or _activation_refusal(m, names.activation)
    ):
        return Refusal(reason)
    if channels % len(position):
        return Refusal(f"it has {len(position)} heads, which do not divide {channels} channels")
    scale, expected = get(m, names.scale), (channels // len(position)) ** -0.5
    if not isinstance(scale, float) or not math.isclose(scale, expected):
        return Refusal(f"{names.scale} is {scale}; expected {expected:.4g}, for the channels of a head")
    norms = tuple((norm.weight, norm.bias, norm.eps) for norm in (get(m, name) for name in names.norms))
    weights = tuple(get(m, f"{name}.weight") for name in names.layers)
    return SwinWeights(norms, weights, biases_of(m, names.layers), position, *windows)


def _mask_refusal(m: nn.Module, window: int, shift: int) -> str | None:
    """Return why the mask that SwinIR's block keeps for one size of images is not that of other sizes."""
    mask, size = get(m, "attn_mask"), get(m, "input_resolution")
    if mask is None:
        return None
    if not isinstance(size, tuple) or len(size) != 2 or any(side % window for side in size):
        return f"its input_resolution is {size}; expected height and width, multiples of the window"
    expected = _MASKED * do_not_attend(size[0], size[1], window, shift)
    return None if torch.equal(mask, expected) else "attn_mask is not what its shift asks for"


def _tensors(names: _Names, sizes: Sequence[tuple[int, int]]) -> list[Expected]:
    channels = sizes[0][1]
    tensors = [Expected(f"{norm}.{part}", (channels,)) for norm in names.norms for part in ("weight", "bias")]
    for name, size in zip(names.layers, sizes, strict=True):
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
    )


def _image(weights: SwinWeights, batch: int, height: int, width: int) -> tuple[Tensor]:
    """Return the argument of SCUNet's half, (B, H, W, C)."""
    height, width = (-(-side // weights.window) * weights.window for side in (height, width))
    return (noise(batch, height, width, weights.weights[0].shape[1]),)


def _tokens(weights: SwinWeights, batch: int, height: int, width: int) -> tuple[Any, ...]:
    """Return the arguments of SwinIR's block, (B, H * W, C) and (H, W)."""
    (image,) = _image(weights, batch, height, width)
    return image.flatten(1, 2), tuple(image.shape[1:3])


_PART = FusedPart(
    "", "fused Swin block", "norms, attention within windows, feed-forward layer and residuals in one op"
)
WINDOW_BLOCKS = (
    BlockKind("a Swin block", find_swin, _fuse, _tokens, (_PART,), dimensions=3, positional=2),
    BlockKind("a block of SCUNet", find_scunet, _fuse, _image, (_PART,)),
)
