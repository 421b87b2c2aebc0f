"""List the stages of a PromptIR: what each is, at which resolution it runs, and how wide it is.

Everything that must know the network's shape asks this list: the network itself, the program that runs it, the detection of
checkpoints, the description of tickets, and training.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirl_sparse.architectures.promptir.config import PromptIRConfig


class Kind(Enum):
    """What a stage is made of."""

    EMBED = "3x3 convolution from RGB"
    BLOCKS = "a sequence of transformer blocks"
    BLOCK = "one transformer block"
    DOWN = "3x3 convolution and pixel unshuffle"
    UP = "3x3 convolution and pixel shuffle"
    REDUCE = "1x1 convolution"
    PROMPT = "prompts, mixed by the features that they are concatenated to"
    OUTPUT = "3x3 convolution to RGB, added to the image"
    UNUSED = "1x1 convolution that the published code stores and never calls"


@dataclass(frozen=True)
class Stage:
    """One stage, an attribute of the network.

    Attributes:
        name: attribute of the network, and how its parameters' names begin.
        kind: what it is made of.
        level: it runs at 1/2^level of the image's height and width.
        inputs: channels of its input.
        outputs: channels of its result, at the resolution where its convolution runs: before a shuffle or unshuffle.
        heads: of its attention.
        depth: how many blocks it has.
    """

    name: str
    kind: Kind
    level: int
    inputs: int
    outputs: int
    heads: int = 1
    depth: int = 0


def stages(config: PromptIRConfig) -> tuple[Stage, ...]:
    """Return the stages in the order in which their parameters are stored."""
    d, prompts, heads, depths = config.dim, config.prompt_dims, config.heads, config.num_blocks

    def blocks(name: str, level: int, width: int, head_count: int, depth: int) -> Stage:
        return Stage(name, Kind.BLOCKS, level, width, width, head_count, depth)

    def down(name: str, level: int) -> Stage:
        return Stage(name, Kind.DOWN, level, d << level, (d << level) // 2)

    def up(name: str, level: int, width: int) -> Stage:
        return Stage(name, Kind.UP, level, width, 2 * width)

    def with_prompt(level: int, width: int, outputs: int) -> tuple[Stage, Stage]:
        """Return the block on features and their prompt, and the convolution that mixes the two."""
        both = width + prompts[level - 1]
        return (
            Stage(f"noise_level{level}", Kind.BLOCK, level, both, both, heads[2], 1),
            Stage(f"reduce_noise_level{level}", Kind.REDUCE, level, both, outputs),
        )

    return (
        Stage("patch_embed", Kind.EMBED, 0, 3, d),
        *(Stage(f"prompt{i}", Kind.PROMPT, i, d << i, prompts[i - 1]) for i in (1, 2, 3)),
        *(_unused(config) if config.unused_layers else ()),
        blocks("encoder_level1", 0, d, heads[0], depths[0]),
        down("down1_2", 0),
        blocks("encoder_level2", 1, 2 * d, heads[1], depths[1]),
        down("down2_3", 1),
        blocks("encoder_level3", 2, 4 * d, heads[2], depths[2]),
        down("down3_4", 2),
        blocks("latent", 3, 8 * d, heads[3], depths[3]),
        up("up4_3", 3, 4 * d),
        Stage("reduce_chan_level3", Kind.REDUCE, 2, 6 * d, 4 * d),
        *with_prompt(3, 8 * d, 4 * d),
        blocks("decoder_level3", 2, 4 * d, heads[2], depths[2]),
        up("up3_2", 2, 4 * d),
        Stage("reduce_chan_level2", Kind.REDUCE, 1, 4 * d, 2 * d),
        *with_prompt(2, 4 * d, 4 * d),
        blocks("decoder_level2", 1, 2 * d, heads[1], depths[1]),
        up("up2_1", 1, 2 * d),
        *with_prompt(1, 2 * d, 2 * d),
        blocks("decoder_level1", 0, 2 * d, heads[0], depths[0]),
        blocks("refinement", 0, 2 * d, heads[0], config.num_refinement_blocks),
        Stage("output", Kind.OUTPUT, 0, 2 * d, 3),
    )


def _unused(config: PromptIRConfig) -> list[Stage]:
    prompts = config.prompt_dims
    reduced = (prompts[0], prompts[1], prompts[2] * 4 // 5)
    result = []
    for i in (1, 2, 3):
        width = config.dim << (i - 1)
        result.append(Stage(f"chnl_reduce{i}", Kind.UNUSED, i, prompts[i - 1], reduced[i - 1]))
        result.append(Stage(f"reduce_noise_channel_{i}", Kind.UNUSED, i, width + reduced[i - 1], width))
    return result


def stage_of(config: PromptIRConfig, parameter: str) -> Stage:
    """Return the stage that a parameter belongs to, by the parameter's name."""
    name = parameter.split(".")[0]
    return next(stage for stage in stages(config) if stage.name == name)
