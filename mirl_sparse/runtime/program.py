"""Write PromptIR as a list of steps on buffers, whatever computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from mirl_sparse.architectures.promptir.network import PatchEmbed, PromptBlock, PromptIR, TransformerBlock
from mirl_sparse.architectures.promptir.topology import DecoderLevel, Stage, UNet, layers_of, unet


class Kernels(NamedTuple):
    """Name what packs each kind of layer.

    Attributes:
        conv: Called as ``conv(weight, stride=(1, 1), padding=None, shuffle=1)``.
        pointwise: Called as ``pointwise(weight)``.
        prompt: Called as ``prompt(linear_weight, linear_bias, prompt_param, conv3x3)``.
        block: Called as ``block(mdta, gdfn)``, by the arguments of both references behind x.
    """

    conv: Callable[..., Any]
    pointwise: Callable[..., Any]
    prompt: Callable[..., Any]
    block: Callable[..., Any]


@dataclass(eq=False)
class Buffer:
    """Stand for an image of ``channels`` channels at 1/2^``level`` of the input's height and width."""

    channels: int
    level: int

    def slice(self, first: int = 0, last: int | None = None) -> Slice:
        """Return the channels from ``first`` up to ``last``, which is excluded; None is the end."""
        return Slice(self, first, self.channels if last is None else last)


@dataclass(frozen=True)
class Slice:
    """Stand for the channels of a buffer from ``first`` up to ``last``, which is excluded."""

    buffer: Buffer
    first: int
    last: int


@dataclass(frozen=True)
class Step:
    """Compute ``y`` = op(x).

    Attributes:
        name: Name of the module that the step stands for.
        op: The op that `Kernels` packed.
        x: The input; None in the first step, whose input is the image.
        y: The output; None in the last step, whose output is the result. The image is added to it.
    """

    name: str
    op: Any
    x: Slice | None
    y: Slice | None


class Program:
    """List the steps of a network.

    Blocks work in place, and what will be concatenated is written side by side in the first place.

    Args:
        network: The network that the steps compute.
        kernels: The functions that pack its layers.

    Attributes:
        steps: The steps in the order in which they run.
    """

    def __init__(self, network: PromptIR, kernels: Kernels) -> None:
        self.steps: list[Step] = []
        self._network, self._kernels = network, kernels
        net = unet(network.config)
        # Per resolution: the upsampled features, and the encoder's result behind them. A shuffle leaves a
        # quarter of the channels.
        ups = [level.up.outputs // 4 for level in reversed(net.decoder)]
        encoded = [level.blocks for level in net.encoder]
        joined = [Buffer(up + stage.outputs, stage.level) for up, stage in zip(ups, encoded, strict=True)]
        skips = [buffer.slice(up) for buffer, up in zip(joined, ups, strict=True)]
        x = self._encode(net, skips)
        below = [*net.decoder[1:], None]
        for decoder, lower, target in zip(net.decoder, below, reversed(joined), strict=True):
            x = self._mix_prompt(decoder, x)
            up = decoder.up
            self._conv(up, x, target.slice(0, up.outputs // 4), shuffle=2)
            x = target.slice()
            if decoder.reduce_skip is not None and lower is not None:
                x = self._pointwise(decoder.reduce_skip, x, _before_prompt(lower))
            x = self._blocks(decoder.blocks, x)
        self._conv(net.output, self._blocks(net.refinement, x), None, shuffle=network.config.unshuffle)

    def _encode(self, net: UNet, skips: list[Slice]) -> Slice:
        """Add the steps down to the lowest resolution; each encoder's result goes to its skip."""
        x = self._embed(net.embed, skips[0])
        for encoder, target in zip(net.encoder, [*skips[1:], _before_prompt(net.decoder[0])], strict=True):
            self._conv(encoder.down, self._blocks(encoder.blocks, x), target, shuffle=-2)
            x = target
        return self._blocks(net.latent, x)

    def _embed(self, stage: Stage, y: Slice) -> Slice:
        module = self._network.get_submodule(stage.name)
        assert isinstance(module, PatchEmbed)
        u = module.unshuffle
        conv = self._kernels.conv(module.strided_weight, stride=(u, u), padding=(u, u, u, u))
        self.steps.append(Step(stage.name, conv, None, y))
        return y

    def _mix_prompt(self, decoder: DecoderLevel, x: Slice) -> Slice:
        """Add the steps that put a prompt behind the features and mix the two."""
        module = self._network.get_submodule(decoder.prompt.name)
        assert isinstance(module, PromptBlock)
        prompt = self._kernels.prompt(*module.weights)
        self.steps.append(Step(decoder.prompt.name, prompt, x, x.buffer.slice(x.last)))
        x = self._blocks(decoder.mix, x.buffer.slice())
        reduce = decoder.reduce_prompt
        return self._pointwise(reduce, x, Buffer(reduce.outputs, reduce.level).slice())

    def _blocks(self, stage: Stage, x: Slice) -> Slice:
        for name in stage.blocks:
            block = self._network.get_submodule(name)
            assert isinstance(block, TransformerBlock)
            self.steps.append(Step(name, self._kernels.block(block.mdta_weights, block.gdfn_weights), x, x))
        return x

    def _pointwise(self, stage: Stage, x: Slice, y: Slice) -> Slice:
        self.steps.append(Step(stage.name, self._kernels.pointwise(self._weight(stage)), x, y))
        return y

    def _conv(self, stage: Stage, x: Slice, y: Slice | None, shuffle: int) -> None:
        self.steps.append(Step(stage.name, self._kernels.conv(self._weight(stage), shuffle=shuffle), x, y))

    def _weight(self, stage: Stage) -> Tensor:
        """Return the weight of a stage that is one convolution."""
        (layer,) = layers_of(stage)
        weight = self._network.get_submodule(layer.name).weight
        assert isinstance(weight, Tensor)
        return weight


def _before_prompt(decoder: DecoderLevel) -> Slice:
    """Return a new place for features, with room for their prompt behind them."""
    return Buffer(decoder.mix.inputs, decoder.mix.level).slice(0, decoder.prompt.inputs)
