"""Define PromptIR (Potlapalli et al., NeurIPS 2023), from the paper and its published parameter names.

The arithmetic of the blocks is in ``mirl_kernels.ops.*.reference``: one definition for the network, for the
tests of the fast kernels, and for their fallback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirl_kernels.ops.conv.reference import conv
from mirl_kernels.ops.gdfn.reference import gdfn
from mirl_kernels.ops.mdta.reference import mdta
from mirl_kernels.ops.prompt.reference import prompt
from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.topology import Kind, Stage, stages

MDTAWeights: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
GDFNWeights: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
PromptWeights: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


class Pointwise(nn.Conv2d):
    """Convolve by a 1x1 kernel without bias: (B, cin, H, W) to (B, cout, H, W)."""

    conv = staticmethod(conv)

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of x."""
        return self.conv(x, self.weight)


def _conv3x3(cin: int, cout: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1, groups=groups, bias=False)


class _Affine(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))


class LayerNorm(nn.Module):
    """Hold gain and bias of a layer norm over channels, in ``body`` as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = _Affine(channels)


class MDTA(nn.Module):
    """Hold the parameters of the transposed attention; `TransformerBlock` adds norm and residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = Pointwise(channels, 3 * channels)
        self.qkv_dwconv = _conv3x3(3 * channels, 3 * channels, groups=3 * channels)
        self.project_out = Pointwise(channels, channels)


class GDFN(nn.Module):
    """Hold the parameters of the gated feed-forward; `TransformerBlock` adds norm and residual."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = Pointwise(channels, 2 * hidden)
        self.dwconv = _conv3x3(2 * hidden, 2 * hidden, groups=2 * hidden)
        self.project_out = Pointwise(hidden, channels)


class TransformerBlock(nn.Module):
    """Compute ``x + attn(norm1(x))``, then ``x + ffn(norm2(x))``; (B, C, H, W) in and out."""

    mdta, gdfn = staticmethod(mdta), staticmethod(gdfn)

    def __init__(self, channels: int, heads: int, expansion: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.attn = MDTA(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.ffn = GDFN(channels, expansion)

    @property
    def mdta_weights(self) -> MDTAWeights:
        """Return the arguments of ``mdta`` behind x."""
        norm, attn = self.norm1.body, self.attn
        taps, out = attn.qkv_dwconv.weight, attn.project_out.weight
        return norm.weight, norm.bias, attn.qkv.weight, taps, attn.temperature, out

    @property
    def gdfn_weights(self) -> GDFNWeights:
        """Return the arguments of ``gdfn`` behind x."""
        norm, ffn = self.norm2.body, self.ffn
        return norm.weight, norm.bias, ffn.project_in.weight, ffn.dwconv.weight, ffn.project_out.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's result for x (B, C, H, W), of the same shape."""
        return self.gdfn(self.mdta(x, *self.mdta_weights), *self.gdfn_weights)


class PatchEmbed(nn.Module):
    """Convolve RGB by 3x3 kernels to ``dim`` channels, after its pixels are unshuffled by ``unshuffle``."""

    conv = staticmethod(conv)

    def __init__(self, dim: int, unshuffle: int) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.proj = _conv3x3(3 * unshuffle**2, dim)

    @property
    def strided_weight(self) -> Tensor:
        """Return the weight (dim, 3, 3u, 3u) that does the same to RGB itself, with stride and padding u."""
        weight, u = self.proj.weight, self.unshuffle
        return weight.view(-1, 3, u, u, 3, 3).permute(0, 1, 4, 2, 5, 3).reshape(-1, 3, 3 * u, 3 * u)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of x (B, 3, H, W), (B, dim, H / unshuffle, W / unshuffle)."""
        pixels = x if self.unshuffle == 1 else F.pixel_unshuffle(x, self.unshuffle)
        return self.conv(pixels, self.proj.weight)


class Resample(nn.Module):
    """Convolve by 3x3 kernels, then shuffle pixels (``shuffle`` 2) or unshuffle them (-2).

    (B, C, H, W) becomes (B, C / 2, 2H, 2W) or (B, 2C, H / 2, W / 2).
    """

    conv = staticmethod(conv)

    def __init__(self, channels: int, shuffle: int) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.body = nn.Sequential(_conv3x3(channels, channels * 2 if shuffle > 0 else channels // 2))

    @property
    def weight(self) -> Tensor:
        """Return the convolution's weight, before the shuffle."""
        return cast(nn.Conv2d, self.body[0]).weight  # what torch.func puts there is no Parameter

    def forward(self, x: Tensor) -> Tensor:
        """Return x at twice or half its resolution."""
        return self.conv(x, self.weight, shuffle=self.shuffle)


class PromptBlock(nn.Module):
    """Mix prompts by the features (B, C, H, W) that they are concatenated to, to (B, P, H, W)."""

    prompt = staticmethod(prompt)

    def __init__(self, channels: int, prompt_channels: int, size: int, count: int) -> None:
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, count, prompt_channels, size, size))
        self.linear_layer = nn.Linear(channels, count)
        self.conv3x3 = _conv3x3(prompt_channels, prompt_channels)

    @property
    def weights(self) -> PromptWeights:
        """Return the arguments of ``prompt`` behind x."""
        linear = self.linear_layer
        return linear.weight, linear.bias, self.prompt_param, self.conv3x3.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the prompts for the features x."""
        return self.prompt(x, *self.weights)


class PromptIR(nn.Module):
    """Restore RGB images (B, 3, H, W) in [0, 1], H and W multiples of ``config.multiple``.

    The result has the same shape and is not clipped.

    Its modules call the definitions of their ops (``mdta``, ``gdfn``, ``conv``, ``prompt``). Training may
    replace these, module by module, by others of the same arguments.

    Args:
        config: Widths and depths; None is the published network.

    Attributes:
        config: The same.

    Examples:
        >>> from mirl_sparse import PromptIR, PromptIRConfig
        >>> network = PromptIR(PromptIRConfig(dim=8, num_blocks=(1, 1, 1, 1)))
        >>> network(torch.rand(1, 3, 16, 24)).shape
        torch.Size([1, 3, 16, 24])
    """

    conv = staticmethod(conv)
    patch_embed: PatchEmbed
    output: nn.Conv2d
    if TYPE_CHECKING:  # the stages, which `stages` names

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: PromptIRConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PromptIRConfig()
        for stage in stages(config):
            setattr(self, stage.name, self._build(stage))

    def _build(self, stage: Stage) -> nn.Module:
        config = self.config

        def block() -> TransformerBlock:
            return TransformerBlock(stage.inputs, stage.heads, config.ffn_expansion)

        match stage.kind:
            case Kind.EMBED:
                return PatchEmbed(stage.outputs, config.unshuffle)
            case Kind.BLOCKS:
                return nn.Sequential(*(block() for _ in range(stage.depth)))
            case Kind.BLOCK:
                return block()
            case Kind.DOWN:
                return Resample(stage.inputs, -2)
            case Kind.UP:
                return Resample(stage.inputs, 2)
            case Kind.PROMPT:
                size = config.prompt_sizes[stage.level - config.unshuffle.bit_length()]
                return PromptBlock(stage.inputs, stage.outputs, size, config.prompt_count)
            case Kind.OUTPUT:
                return _conv3x3(stage.inputs, stage.outputs)
            case _:
                return Pointwise(stage.inputs, stage.outputs)

    @classmethod
    def shapes(cls, config: PromptIRConfig) -> dict[str, torch.Size]:
        """Return the shapes of all parameters of a network, by name, in stored order."""
        with torch.device("meta"):  # shapes without memory
            return {name: tensor.shape for name, tensor in cls(config).state_dict().items()}

    def forward(self, image: Tensor) -> Tensor:
        """Return the restored image.

        Raises:
            ValueError: The image has another shape than (B, 3, H, W), or a side is no multiple.
        """
        multiple = self.config.multiple
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % multiple or image.shape[3] % multiple:
            raise ValueError(
                f"input of shape {tuple(image.shape)};"
                f" expected (B, 3, H, W) with H and W multiples of {multiple}"
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
        unshuffle = self.config.unshuffle
        return self.conv(self.refinement(x), self.output.weight, shuffle=unshuffle, residual=image)
