"""PromptIR (Potlapalli et al., NeurIPS 2023), written from the paper and its published parameter names.

The blocks' arithmetic is in ``mirl_kernels.*.reference``, one definition for the network, for the
tests of the fast kernels, and for their fallback.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mirl_kernels.conv.reference import conv
from mirl_kernels.gdfn.reference import gdfn
from mirl_kernels.mdta.reference import mdta
from mirl_kernels.prompt.reference import prompt
from mirl_sparse.errors import UserError

MULTIPLE = 8  # three halvings: height and width must divide by this


class ConfigError(UserError):
    """A configuration that describes no network; the message is one line for the user."""


@dataclass(frozen=True)
class PromptIRConfig:
    """Widths and depths of a PromptIR; the defaults are the published network.

    ``dim`` channels at full resolution, doubled at each of three halvings; ``num_blocks`` per
    level, the last of them the latent; ``heads`` per level; ``ffn_expansion`` the ratio of GDFN's
    hidden width to its input; ``prompt_dims`` and ``prompt_sizes`` the channels and side of the
    prompts at 1/2, 1/4 and 1/8 resolution; ``prompt_count`` how many are mixed.
    ``unused_layers`` keeps the six layers that the published code stores and never calls.
    """

    dim: int = 48
    num_blocks: tuple[int, int, int, int] = (4, 6, 6, 8)
    num_refinement_blocks: int = 4
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    ffn_expansion: float = 2.66
    prompt_dims: tuple[int, int, int] = (64, 128, 320)
    prompt_sizes: tuple[int, int, int] = (64, 32, 16)
    prompt_count: int = 5
    unused_layers: bool = True

    def __post_init__(self) -> None:
        for name, length in (("num_blocks", 4), ("heads", 4), ("prompt_dims", 3), ("prompt_sizes", 3)):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or len(value) != length:
                raise ConfigError(f"{name} is {value!r}; expected {length} integers")
            object.__setattr__(self, name, tuple(value))
        counts = {"dim": self.dim, "num_refinement_blocks": self.num_refinement_blocks}
        counts["prompt_count"] = self.prompt_count
        for name in ("num_blocks", "heads", "prompt_dims", "prompt_sizes"):
            counts |= {f"{name}[{i}]": v for i, v in enumerate(getattr(self, name))}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected an integer of 1 or more")
        if not isinstance(self.ffn_expansion, (int, float)) or int(self.dim * self.ffn_expansion) < 1:
            raise ConfigError(
                f"ffn_expansion is {self.ffn_expansion!r}; expected a number that leaves"
                f" at least one hidden channel of dim {self.dim}"
            )
        if self.dim % 2:
            raise ConfigError(f"dim is {self.dim}; expected an even number (levels halve before they unshuffle)")
        for where, channels, heads in self.attention_widths():
            if channels % heads:
                raise ConfigError(f"{where} has {channels} channels for {heads} heads; expected a multiple")

    def attention_widths(self) -> list[tuple[str, int, int]]:
        """(stage, channels, heads) of every stage that holds transformer blocks."""
        d, h, p = self.dim, self.heads, self.prompt_dims
        return [
            ("encoder_level1", d, h[0]),
            ("encoder_level2", 2 * d, h[1]),
            ("encoder_level3", 4 * d, h[2]),
            ("latent", 8 * d, h[3]),
            ("noise_level3", 8 * d + p[2], h[2]),
            ("decoder_level3", 4 * d, h[2]),
            ("noise_level2", 4 * d + p[1], h[2]),
            ("decoder_level2", 2 * d, h[1]),
            ("noise_level1", 2 * d + p[0], h[2]),
            ("decoder_level1", 2 * d, h[0]),
            ("refinement", 2 * d, h[0]),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as a YAML file or a ticket's metadata holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PromptIRConfig:
        """The inverse of `to_dict`; unknown keys are refused."""
        if not isinstance(values, dict):
            raise ConfigError(f"the network's config is {values!r}; expected a mapping")
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown network setting {unknown[0]!r}; expected one of {', '.join(sorted(known))}")
        return cls(**values)


class Pointwise(nn.Conv2d):
    """1x1 convolution without bias, by its op."""

    conv = staticmethod(conv)

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.weight)


def _conv3x3(cin: int, cout: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1, groups=groups, bias=False)


class _Affine(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))


class LayerNorm(nn.Module):
    """Gain and bias of a layer norm over channels; named ``body`` as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _Affine(channels)


class MDTA(nn.Module):
    """Parameters of the transposed attention; `TransformerBlock` runs it with its norm and residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = Pointwise(channels, 3 * channels)
        self.qkv_dwconv = _conv3x3(3 * channels, 3 * channels, groups=3 * channels)
        self.project_out = Pointwise(channels, channels)


class GDFN(nn.Module):
    """Parameters of the gated feed-forward; `TransformerBlock` runs it with its norm and residual."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = Pointwise(channels, 2 * hidden)
        self.dwconv = _conv3x3(2 * hidden, 2 * hidden, groups=2 * hidden)
        self.project_out = Pointwise(hidden, channels)


class TransformerBlock(nn.Module):
    """``x + attn(norm1(x))``, then ``x + ffn(norm2(x))``; (B, C, H, W) in and out."""

    mdta, gdfn = staticmethod(mdta), staticmethod(gdfn)

    def __init__(self, channels: int, heads: int, expansion: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.attn = MDTA(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.ffn = GDFN(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        a, n, f, m = self.attn, self.norm1.body, self.ffn, self.norm2.body
        x = self.mdta(x, n.weight, n.bias, a.qkv.weight, a.qkv_dwconv.weight, a.temperature, a.project_out.weight)
        return self.gdfn(x, m.weight, m.bias, f.project_in.weight, f.dwconv.weight, f.project_out.weight)


class PatchEmbed(nn.Module):
    """3x3 convolution from RGB to ``dim`` channels."""

    conv = staticmethod(conv)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = _conv3x3(3, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.proj.weight)


class Resample(nn.Module):
    """3x3 convolution and pixel shuffle (``shuffle`` 2) or unshuffle (-2): (B, C, H, W) to
    (B, C / 2, 2H, 2W) or (B, 2C, H / 2, W / 2)."""

    conv = staticmethod(conv)

    def __init__(self, channels: int, shuffle: int) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.body = nn.Sequential(_conv3x3(channels, channels * 2 if shuffle > 0 else channels // 2))

    @property
    def weight(self) -> Tensor:
        """The convolution's weight."""
        return cast(nn.Conv2d, self.body[0]).weight  # what torch.func puts there is no Parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.weight, shuffle=self.shuffle)


class PromptBlock(nn.Module):
    """Prompts mixed by the features (B, C, H, W) they are concatenated to; returns (B, P, H, W)."""

    prompt = staticmethod(prompt)

    def __init__(self, channels: int, prompt_channels: int, size: int, count: int) -> None:
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, count, prompt_channels, size, size))
        self.linear_layer = nn.Linear(channels, count)
        self.conv3x3 = _conv3x3(prompt_channels, prompt_channels)

    def forward(self, x: Tensor) -> Tensor:
        linear = self.linear_layer
        return self.prompt(x, linear.weight, linear.bias, self.prompt_param, self.conv3x3.weight)


class PromptIR(nn.Module):
    """The all-in-one restoration network: RGB (B, 3, H, W) in [0, 1] to the same shape, H and W
    multiples of 8. The result is not clipped.

    Its modules call the definitions of their ops (``mdta``, ``gdfn``, ``conv``, ``prompt``), which training may replace, module by
    module, by others of the same arguments."""

    conv = staticmethod(conv)

    def __init__(self, config: PromptIRConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PromptIRConfig()
        d, p, s = config.dim, config.prompt_dims, config.prompt_sizes
        widths = {where: (channels, heads) for where, channels, heads in config.attention_widths()}

        def blocks(where: str, count: int) -> nn.Sequential:
            return nn.Sequential(*(TransformerBlock(*widths[where], config.ffn_expansion) for _ in range(count)))

        def block(where: str) -> TransformerBlock:
            return TransformerBlock(*widths[where], config.ffn_expansion)

        n1, n2, n3, n4 = config.num_blocks
        self.patch_embed = PatchEmbed(d)
        self.prompt1 = PromptBlock(2 * d, p[0], s[0], config.prompt_count)
        self.prompt2 = PromptBlock(4 * d, p[1], s[1], config.prompt_count)
        self.prompt3 = PromptBlock(8 * d, p[2], s[2], config.prompt_count)
        if config.unused_layers:
            reduced = (p[0], p[1], p[2] * 4 // 5)
            for i in (1, 2, 3):
                width = d * 2 ** (i - 1)
                setattr(self, f"chnl_reduce{i}", Pointwise(p[i - 1], reduced[i - 1]))
                setattr(self, f"reduce_noise_channel_{i}", Pointwise(width + reduced[i - 1], width))
        self.encoder_level1 = blocks("encoder_level1", n1)
        self.down1_2 = Resample(d, -2)
        self.encoder_level2 = blocks("encoder_level2", n2)
        self.down2_3 = Resample(2 * d, -2)
        self.encoder_level3 = blocks("encoder_level3", n3)
        self.down3_4 = Resample(4 * d, -2)
        self.latent = blocks("latent", n4)
        self.up4_3 = Resample(4 * d, 2)
        self.reduce_chan_level3 = Pointwise(6 * d, 4 * d)
        self.noise_level3 = block("noise_level3")
        self.reduce_noise_level3 = Pointwise(8 * d + p[2], 4 * d)
        self.decoder_level3 = blocks("decoder_level3", n3)
        self.up3_2 = Resample(4 * d, 2)
        self.reduce_chan_level2 = Pointwise(4 * d, 2 * d)
        self.noise_level2 = block("noise_level2")
        self.reduce_noise_level2 = Pointwise(4 * d + p[1], 4 * d)
        self.decoder_level2 = blocks("decoder_level2", n2)
        self.up2_1 = Resample(2 * d, 2)
        self.noise_level1 = block("noise_level1")
        self.reduce_noise_level1 = Pointwise(2 * d + p[0], 2 * d)
        self.decoder_level1 = blocks("decoder_level1", n1)
        self.refinement = blocks("refinement", config.num_refinement_blocks)
        self.output = _conv3x3(2 * d, 3)

    @classmethod
    def names(cls, config: PromptIRConfig) -> frozenset[str]:
        """The names of all parameters of such a network."""
        with torch.device("meta"):
            return frozenset(cls(config).state_dict())

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % MULTIPLE or image.shape[3] % MULTIPLE:
            raise ValueError(
                f"input of shape {tuple(image.shape)}; expected (B, 3, H, W) with H and W multiples of {MULTIPLE}"
            )
        level1 = self.encoder_level1(self.patch_embed(image))
        level2 = self.encoder_level2(self.down1_2(level1))
        level3 = self.encoder_level3(self.down2_3(level2))
        x = self.latent(self.down3_4(level3))
        x = self.reduce_noise_level3(self.noise_level3(torch.cat([x, self.prompt3(x)], 1)))
        x = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(x), level3], 1)))
        x = self.reduce_noise_level2(self.noise_level2(torch.cat([x, self.prompt2(x)], 1)))
        x = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(x), level2], 1)))
        x = self.reduce_noise_level1(self.noise_level1(torch.cat([x, self.prompt1(x)], 1)))
        x = self.decoder_level1(torch.cat([self.up2_1(x), level1], 1))
        return self.conv(self.refinement(x), self.output.weight, residual=image)


def remove_pruning(module: nn.Module) -> bool:
    """Make weights that are masked by torch.nn.utils.prune into weights again; whether there were any."""
    found = [
        (m, hook._tensor_name)
        for m in module.modules()
        for hook in m._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]
    for m, name in found:
        prune.remove(m, name)
    return bool(found)
