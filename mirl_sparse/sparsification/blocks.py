"""Recognise and fuse blocks of images: Restormer's, PromptIR's prompts, NAFNet's.

The ``find_*`` functions recognise them. They look at attributes and shapes only, and return the weights of a
block, a `Refusal` for a module that resembles a block but is none, or None for any other module. A block with
the right weights may still compute something else: the passes compare it with its fused form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from mirl_kernels.core.layer_norm import EPS
from mirl_kernels.ops.block import PackedBlock
from mirl_kernels.ops.gdfn import PackedGDFN
from mirl_kernels.ops.mdta import PackedMDTA
from mirl_kernels.ops.naf import PackedNAF
from mirl_kernels.ops.prompt import PackedPrompt
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


class MDTAWeights(NamedTuple):
    """Hold the weights of a block's attention as `PackedMDTA` takes them; C channels."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor | None  # (C,)
    qkv: Tensor  # (3C, C, 1, 1)
    dwconv: Tensor  # (3C, 1, 3, 3)
    temperature: Tensor  # (heads,)
    project_out: Tensor  # (C, C, 1, 1)
    biases: Biases  # of the three convolutions


class GDFNWeights(NamedTuple):
    """Hold the weights of a block's feed-forward layer as `PackedGDFN` takes them; C channels, h pairs."""

    norm_weight: Tensor  # (C,)
    norm_bias: Tensor | None  # (C,)
    project_in: Tensor  # (2h, C, 1, 1)
    dwconv: Tensor  # (2h, 1, 3, 3)
    project_out: Tensor  # (C, h, 1, 1)
    biases: Biases  # of the three convolutions


class RestormerWeights(NamedTuple):
    """Hold the weights of ``x + attn(norm1(x))``, then ``x + ffn(norm2(x))``."""

    attention: MDTAWeights
    feed_forward: GDFNWeights


class PromptWeights(NamedTuple):
    """Hold the weights of a prompt block as `PackedPrompt` takes them; n prompts of P channels, C inputs."""

    linear_weight: Tensor  # (n, C)
    linear_bias: Tensor  # (n,)
    prompt_param: Tensor  # (1, n, P, side, side)
    conv3x3: Tensor  # (P, P, 3, 3)


class NAFWeights(NamedTuple):
    """Hold the weights of NAFNet's block as `PackedNAF` takes them; C channels, p and q hidden pairs."""

    norms: tuple[tuple[Tensor, Tensor, float], ...]  # gain (C,), bias (C,) and epsilon of both
    weights: tuple[Tensor, ...]  # conv1, conv2, sca, conv3, conv4, conv5
    biases: Biases
    beta: Tensor  # (C,)
    gamma: Tensor  # (C,)


def _norm(m: nn.Module, name: str) -> str:
    """Return where a norm has its weight: Restormer's norms have it in ``body``."""
    return name if get(m, f"{name}.body") is None else f"{name}.body"


def _epsilon_refusal(m: nn.Module, norm: str) -> str | None:
    epsilon = get(m, f"{norm}.eps")
    return None if epsilon in (None, EPS) else f"{norm} adds {epsilon} to the variance; expected {EPS}"


def _half_refusal(
    m: nn.Module, norm: str, convs: tuple[str, str, str], channels: int, widths: tuple[int, int]
) -> str | None:
    """Return why a norm, a 1x1 to ``widths[0]``, a depthwise 3x3 and a 1x1 from ``widths[1]`` are no half."""
    rows, columns = widths
    expected = (
        Expected(f"{norm}.weight", (channels,)),
        Expected(f"{norm}.bias", (channels,), optional=True),
        *conv_tensors(convs[0], rows, channels),
        *conv_tensors(convs[1], rows, 1, 3),
        *conv_tensors(convs[2], channels, columns),
    )
    return _epsilon_refusal(m, norm) or unexpected(m, expected) or geometry_refusal(m, convs[1:2])


def _mdta(m: nn.Module) -> MDTAWeights | Refusal:
    norm, convs = _norm(m, "norm1"), ("attn.qkv", "attn.qkv_dwconv", "attn.project_out")
    c, temperature = size_of(m, f"{norm}.weight", 0), get(m, "attn.temperature")
    if reason := _half_refusal(m, norm, convs, c, (3 * c, c)):
        return Refusal(reason)
    if not isinstance(temperature, Tensor):
        return Refusal("it has no attn.temperature")
    if reason := weight_refusal(temperature, "attn.temperature"):
        return Refusal(reason)
    if c % temperature.numel():
        return Refusal(
            f"attn.temperature is of {temperature.numel()} heads, which do not divide {c} channels"
        )
    qkv, dwconv, project_out = (get(m, f"{name}.weight") for name in convs)
    affine = get(m, f"{norm}.weight"), get(m, f"{norm}.bias")
    return MDTAWeights(*affine, qkv, dwconv, temperature.flatten(), project_out, biases_of(m, convs))


def _gdfn(m: nn.Module, c: int) -> GDFNWeights | Refusal:
    norm, convs = _norm(m, "norm2"), ("ffn.project_in", "ffn.dwconv", "ffn.project_out")
    h = size_of(m, f"{convs[2]}.weight", 1)
    if reason := _half_refusal(m, norm, convs, c, (2 * h, h)):
        return Refusal(reason)
    project_in, dwconv, project_out = (get(m, f"{name}.weight") for name in convs)
    affine = get(m, f"{norm}.weight"), get(m, f"{norm}.bias")
    return GDFNWeights(*affine, project_in, dwconv, project_out, biases_of(m, convs))


def find_restormer(m: nn.Module) -> RestormerWeights | Refusal | None:
    """Find the weights of a block of Restormer's family (CVPR 2022, figure 2).

    Args:
        m: Any module; it resembles such a block where it has modules ``attn`` and ``ffn``.

    Returns:
        The weights, the reason why it is no such block, or None where it does not resemble one.
    """
    if not all(isinstance(get(m, name), nn.Module) for name in ("attn", "ffn")):
        return None
    attention = _mdta(m)
    if isinstance(attention, Refusal):
        return attention
    feed_forward = _gdfn(m, len(attention.project_out))
    if isinstance(feed_forward, Refusal):
        return feed_forward
    return RestormerWeights(attention, feed_forward)


def find_prompt(m: nn.Module) -> PromptWeights | Refusal | None:
    """Find the weights of PromptIR's prompt block (NeurIPS 2023).

    Args:
        m: Any module; it resembles such a block where it has ``prompt_param``, ``linear_layer`` and
            ``conv3x3``.

    Returns:
        The weights, the reason why it is no such block, or None where it does not resemble one.
    """
    if any(get(m, name) is None for name in ("prompt_param", "linear_layer", "conv3x3")):
        return None
    count, channels, side = (size_of(m, "prompt_param", axis) for axis in (1, 2, 3))
    if reason := unexpected(
        m,
        (
            Expected("prompt_param", (1, count, channels, side, side)),
            Expected("linear_layer.weight", (count, size_of(m, "linear_layer.weight", 1))),
            Expected("linear_layer.bias", (count,)),
            *conv_tensors("conv3x3", channels, channels, 3),
        ),
    ) or geometry_refusal(m, ["conv3x3"]):
        return Refusal(reason)
    bias = get(m, "conv3x3.bias")
    if bias is not None and bool(bias.any()):
        return Refusal("conv3x3 has a bias, which the fused op does not add")
    paths = "linear_layer.weight", "linear_layer.bias", "prompt_param", "conv3x3.weight"
    return PromptWeights(*(get(m, path) for path in paths))


def find_naf(m: nn.Module) -> NAFWeights | Refusal | None:
    """Find the weights of NAFNet's block (Simple Baselines for Image Restoration, ECCV 2022, figure 3c).

    Args:
        m: Any module; it resembles such a block where it has ``sca``, ``beta`` and ``gamma``.

    Returns:
        The weights, the reason why it is no such block, or None where it does not resemble one.
    """
    if any(get(m, name) is None for name in ("sca", "beta", "gamma")):
        return None
    convs = "conv1", "conv2", "sca.1", "conv3", "conv4", "conv5"
    c, p, q = size_of(m, "conv1.weight", 1), size_of(m, "conv3.weight", 1), size_of(m, "conv5.weight", 1)
    affine = [Expected(f"norm{i}.{name}", (c,)) for i in (1, 2) for name in ("weight", "bias")]
    sizes = ((2 * p, c), (2 * p, 1, 3), (p, p), (c, p), (2 * q, c), (c, q))
    tensors = [
        tensor for name, size in zip(convs, sizes, strict=True) for tensor in conv_tensors(name, *size)
    ]
    if reason := (
        _pool_refusal(m.sca)
        or unexpected(m, [*affine, *tensors])
        or geometry_refusal(m, ["conv2"])
        or next(filter(None, (_naf_refusal(m, i, c) for i in (1, 2))), None)
    ):
        return Refusal(reason)
    norms = tuple((norm.weight, norm.bias, norm.eps) for norm in (get(m, "norm1"), get(m, "norm2")))
    weights = tuple(get(m, f"{name}.weight") for name in convs)
    beta, gamma = (get(m, name).flatten() for name in ("beta", "gamma"))
    return NAFWeights(norms, weights, biases_of(m, convs), beta, gamma)


def _pool_refusal(sca: Any) -> str | None:
    """Return why NAFNet's channel attention is not one average over the image and a convolution."""
    if not isinstance(sca, (nn.Sequential, nn.ModuleList)) or len(sca) != 2:
        return "sca has other parts; expected an average over the image and a 1x1 convolution"
    pool = sca[0]
    # Averages over windows equal those over an image as small as a window, so that no comparison would tell.
    if not isinstance(pool, nn.AdaptiveAvgPool2d) or pool.output_size not in (1, (1, 1)):
        size = getattr(pool, "output_size", None)
        return f"sca averages by {type(pool).__name__} to size {size}; expected AdaptiveAvgPool2d to size 1"
    return None


def _naf_refusal(m: nn.Module, half: int, channels: int) -> str | None:
    """Return why a half of NAFNet's block has no epsilon, or no factor for each channel."""
    if not isinstance(get(m, f"norm{half}.eps"), float):
        return f"it has no norm{half}.eps"
    name = ("beta", "gamma")[half - 1]
    scale = get(m, name)
    if not isinstance(scale, Tensor) or scale.numel() != channels:
        return f"{name} is no tensor of {channels} values, one for each channel"
    return weight_refusal(scale, name)


def _restormer_channels(weights: RestormerWeights) -> int:
    return len(weights.attention.project_out)


def _fuse_restormer(weights: RestormerWeights) -> nn.Module:
    return PackedBlock(PackedMDTA(*weights.attention), PackedGDFN(*weights.feed_forward))


def _prompt_channels(weights: PromptWeights) -> int:
    return weights.linear_weight.shape[1]


def _fuse_prompt(weights: PromptWeights) -> nn.Module:
    return PackedPrompt(*weights)


def _naf_channels(weights: NAFWeights) -> int:
    return len(weights.beta)


def _fuse_naf(weights: NAFWeights) -> nn.Module:
    return PackedNAF(*weights)


def _images(
    channels: Callable[[Any], int], weights: Any, batch: int, height: int, width: int
) -> tuple[Tensor]:
    """Return the argument of a block that takes images of so many channels."""
    return (noise(batch, channels(weights), height, width),)


def restormer_kind(fuse: Callable[[RestormerWeights], nn.Module]) -> BlockKind:
    """Return the kind of Restormer's blocks, fused by a target's own function."""
    return BlockKind(
        "a Restormer block",
        find_restormer,
        fuse,
        partial(_images, _restormer_channels),
        (
            FusedPart("attn", "fused MDTA", "norm, convolutions, attention and residual in one op"),
            FusedPart("ffn", "fused GDFN", "norm, convolutions, gate and residual in one op"),
        ),
    )


IMAGE_BLOCKS = (
    restormer_kind(_fuse_restormer),
    BlockKind(
        "a prompt block",
        find_prompt,
        _fuse_prompt,
        partial(_images, _prompt_channels),
        (FusedPart("", "fused prompt", "mixture, resize and convolution in one op"),),
    ),
    BlockKind(
        "a NAFNet block",
        find_naf,
        _fuse_naf,
        partial(_images, _naf_channels),
        (
            FusedPart(
                "",
                "fused NAFNet block",
                "norms, convolutions, gates, channel attention and residuals in one op",
            ),
        ),
    ),
)
