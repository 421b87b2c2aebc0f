"""List the stages and layers of a PromptIR: what each is, at which resolution it runs, and how wide it is.

Everything that must know the network's shape asks this list: the network itself, the program that runs it,
the detection of checkpoints, the description of tickets, and training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirl_sparse.architectures.promptir.config import PromptIRConfig


class Kind(Enum):
    """Name what a stage is made of."""

    EMBED = "3x3 convolution from RGB, its pixels unshuffled"
    BLOCKS = "a sequence of transformer blocks"
    BLOCK = "one transformer block"
    DOWN = "3x3 convolution and pixel unshuffle"
    UP = "3x3 convolution and pixel shuffle"
    REDUCE = "1x1 convolution"
    PROMPT = "prompts, mixed by the features that they are concatenated to"
    OUTPUT = "3x3 convolution to RGB, shuffled to pixels and added to the image"
    UNUSED = "1x1 convolution that the published code stores and never calls"


class Part(Enum):
    """Name what a convolution or linear layer does in its stage."""

    CONV = "3x3 convolution"
    POINTWISE = "1x1 convolution"
    QKV = "1x1 convolution to q, k and v"
    QKV_TAPS = "depthwise 3x3 convolution of q, k and v"
    ATTENTION_OUT = "1x1 convolution of the attention's result"
    GATE_IN = "1x1 convolution to the two halves of the gate"
    GATE_TAPS = "depthwise 3x3 convolution of the two halves of the gate"
    GATE_OUT = "1x1 convolution of the gate's result"
    PROMPT_WEIGHTS = "linear layer to the weights of the prompts"
    PROMPT_CONV = "3x3 convolution of the mixed prompts"


@dataclass(frozen=True)
class Stage:
    """Describe one stage, an attribute of the network.

    Attributes:
        name: Attribute of the network, and how the names of its parameters begin.
        kind: Kind of the stage.
        level: Number of halvings: it runs at 1/2^level of the image's height and width.
        inputs: Channels of its input.
        outputs: Channels of its result, at the resolution where its convolution runs: before a shuffle or
            unshuffle.
        heads: Heads of its attention.
        depth: Number of its transformer blocks.
    """

    name: str
    kind: Kind
    level: int
    inputs: int
    outputs: int
    heads: int = 1
    depth: int = 0

    @property
    def blocks(self) -> tuple[str, ...]:
        """Return the names of the stage's transformer blocks, in the order in which they run."""
        if self.kind is Kind.BLOCK:
            return (self.name,)
        return tuple(f"{self.name}.{i}" for i in range(self.depth))


@dataclass(frozen=True)
class Layer:
    """Describe one convolution or linear layer of a stage.

    Attributes:
        name: Name of its module; the weight's name is this and ``.weight``.
        part: Part of the stage that it is.
        stage: The stage that it belongs to.
    """

    name: str
    part: Part
    stage: Stage

    @property
    def weight(self) -> str:
        """Return the name of the layer's weight."""
        return f"{self.name}.weight"


@dataclass(frozen=True)
class EncoderLevel:
    """Hold the stages of one resolution on the way down.

    Attributes:
        blocks: Transformer blocks.
        down: The step to half the resolution.
    """

    blocks: Stage
    down: Stage


@dataclass(frozen=True)
class DecoderLevel:
    """Hold the stages from one resolution to twice that, in the order in which they run.

    Attributes:
        prompt: Prompts, concatenated to the features.
        mix: Transformer block on features and prompt.
        reduce_prompt: 1x1 convolution back to fewer channels.
        up: The step to twice the resolution; the encoder's result is concatenated to it.
        reduce_skip: 1x1 convolution of the two; None at the highest resolution.
        blocks: Transformer blocks.
    """

    prompt: Stage
    mix: Stage
    reduce_prompt: Stage
    up: Stage
    reduce_skip: Stage | None
    blocks: Stage


@dataclass(frozen=True)
class UNet:
    """Hold all stages of a PromptIR, in the order in which they run.

    Attributes:
        embed: 3x3 convolution from RGB, or from 12 channels of unshuffled pixels.
        encoder: Highest resolution first: full resolution, or half of it where the network unshuffles pixels.
        latent: Transformer blocks at the lowest resolution.
        decoder: Lowest resolution first.
        refinement: Transformer blocks at the highest resolution.
        output: 3x3 convolution to RGB, or to the 12 channels that are shuffled to pixels.
        unused: Stages that are stored and never called.
    """

    embed: Stage
    encoder: tuple[EncoderLevel, ...]
    latent: Stage
    decoder: tuple[DecoderLevel, ...]
    refinement: Stage
    output: Stage
    unused: tuple[Stage, ...]


def unet(config: PromptIRConfig) -> UNet:
    """Return the stages of a network, by their place in the U-net."""
    dim, heads, depths = config.dim, config.heads, config.num_blocks
    top, pixels = config.unshuffle.bit_length() - 1, 3 * config.unshuffle**2

    def blocks(name: str, level: int, width: int, head_count: int, depth: int) -> Stage:
        return Stage(name, Kind.BLOCKS, top + level, width, width, head_count, depth)

    def encoder(level: int) -> EncoderLevel:
        width, n = dim << level, level + 1
        return EncoderLevel(
            blocks(f"encoder_level{n}", level, width, heads[level], depths[level]),
            Stage(f"down{n}_{n + 1}", Kind.DOWN, top + level, width, width // 2),
        )

    def decoder(level: int) -> DecoderLevel:
        """Return the stages from a level to the one above; published names count the levels above from 1."""
        above, width = level - 1, dim << level
        both = width + config.prompt_dims[above]
        reduced = 4 * dim if above else 2 * dim
        skip = dim << above
        joined = reduced // 2 + skip
        return DecoderLevel(
            prompt=Stage(f"prompt{level}", Kind.PROMPT, top + level, width, both - width),
            mix=Stage(f"noise_level{level}", Kind.BLOCK, top + level, both, both, heads[2], 1),
            reduce_prompt=Stage(f"reduce_noise_level{level}", Kind.REDUCE, top + level, both, reduced),
            up=Stage(f"up{level + 1}_{level}", Kind.UP, top + level, reduced, 2 * reduced),
            reduce_skip=Stage(f"reduce_chan_level{level}", Kind.REDUCE, top + above, joined, skip)
            if above
            else None,
            blocks=blocks(
                f"decoder_level{level}", above, skip if above else joined, heads[above], depths[above]
            ),
        )

    return UNet(
        embed=Stage("patch_embed", Kind.EMBED, top, pixels, dim),
        encoder=tuple(map(encoder, (0, 1, 2))),
        latent=blocks("latent", 3, 8 * dim, heads[3], depths[3]),
        decoder=tuple(map(decoder, (3, 2, 1))),
        refinement=blocks("refinement", 0, 2 * dim, heads[0], config.num_refinement_blocks),
        output=Stage("output", Kind.OUTPUT, top, 2 * dim, pixels),
        unused=tuple(_unused(config)) if config.unused_layers else (),
    )


def _unused(config: PromptIRConfig) -> Iterator[Stage]:
    prompts, top = config.prompt_dims, config.unshuffle.bit_length() - 1
    reduced = (prompts[0], prompts[1], prompts[2] * 4 // 5)
    for i in (1, 2, 3):
        width = config.dim << (i - 1)
        yield Stage(f"chnl_reduce{i}", Kind.UNUSED, top + i, prompts[i - 1], reduced[i - 1])
        yield Stage(f"reduce_noise_channel_{i}", Kind.UNUSED, top + i, width + reduced[i - 1], width)


def stages(config: PromptIRConfig) -> tuple[Stage, ...]:
    """Return the stages in the order in which their parameters are stored."""
    return tuple(_stored(unet(config)))


def _stored(net: UNet) -> Iterator[Stage]:
    yield net.embed
    yield from (step.prompt for step in reversed(net.decoder))
    yield from net.unused
    for down in net.encoder:
        yield from (down.blocks, down.down)
    yield net.latent
    for up in net.decoder:
        yield up.up
        if up.reduce_skip is not None:
            yield up.reduce_skip
        yield from (up.mix, up.reduce_prompt, up.blocks)
    yield from (net.refinement, net.output)


_BLOCK_PARTS = {
    "attn.qkv": Part.QKV,
    "attn.qkv_dwconv": Part.QKV_TAPS,
    "attn.project_out": Part.ATTENTION_OUT,
    "ffn.project_in": Part.GATE_IN,
    "ffn.dwconv": Part.GATE_TAPS,
    "ffn.project_out": Part.GATE_OUT,
}


def layers(config: PromptIRConfig) -> tuple[Layer, ...]:
    """Return the convolutions and linear layers in the order in which their weights are stored.

    Examples:
        >>> from mirl_sparse.architectures.promptir import PromptIRConfig
        >>> [layer.name for layer in layers(PromptIRConfig())][:3]
        ['patch_embed.proj', 'prompt1.linear_layer', 'prompt1.conv3x3']
    """
    return tuple(layer for stage in stages(config) for layer in layers_of(stage))


def layers_of(stage: Stage) -> Iterator[Layer]:
    """Yield the convolutions and linear layers of one stage."""
    match stage.kind:
        case Kind.BLOCKS | Kind.BLOCK:
            for block in stage.blocks:
                yield from (Layer(f"{block}.{name}", part, stage) for name, part in _BLOCK_PARTS.items())
        case Kind.PROMPT:
            yield Layer(f"{stage.name}.linear_layer", Part.PROMPT_WEIGHTS, stage)
            yield Layer(f"{stage.name}.conv3x3", Part.PROMPT_CONV, stage)
        case Kind.EMBED:
            yield Layer(f"{stage.name}.proj", Part.CONV, stage)
        case Kind.DOWN | Kind.UP:
            yield Layer(f"{stage.name}.body.0", Part.CONV, stage)
        case Kind.OUTPUT:
            yield Layer(stage.name, Part.CONV, stage)
        case Kind.REDUCE | Kind.UNUSED:
            yield Layer(stage.name, Part.POINTWISE, stage)


def unused_weights(config: PromptIRConfig) -> frozenset[str]:
    """Return the names of the weights that are stored and never used; they have no other parameters."""
    return frozenset(f"{stage.name}.weight" for stage in unet(config).unused)
