"""PromptIR as a list of steps on buffers, whatever computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from mirl_sparse.architectures.promptir.network import PromptBlock, PromptIR, TransformerBlock


class Kernels(NamedTuple):
    """What packs each kind of layer: ``conv(weight, shuffle=1)``, ``pointwise(weight)``, ``prompt(linear_weight, linear_bias,
    prompt_param, conv3x3)``, and ``block(mdta, gdfn)`` of the arguments of both references behind x."""

    conv: Callable[..., Any]
    pointwise: Callable[..., Any]
    prompt: Callable[..., Any]
    block: Callable[..., Any]


@dataclass(eq=False)
class Buffer:
    """An image of ``channels`` channels at 1/2^level of the input's side."""

    channels: int
    level: int

    def slice(self, first: int = 0, last: int | None = None) -> Slice:
        return Slice(self, first, self.channels if last is None else last)


@dataclass(frozen=True)
class Slice:
    """Channels of a buffer."""

    buffer: Buffer
    first: int
    last: int


@dataclass(frozen=True)
class Step:
    """``y`` = op(x). The first step's x is the input image; the last step's y the result, to which the image is added."""

    name: str
    op: Any
    x: Slice | None
    y: Slice | None


class Program:
    """The network as a list of steps. Blocks work in place, and what will be concatenated is written side by side in the first place."""

    def __init__(self, network: PromptIR, kernels: Kernels) -> None:
        self.steps: list[Step] = []
        self._kernels = kernels
        self._network = n = network
        d, prompts = n.config.dim, n.config.prompt_dims
        above = [len(self._weight(up)) // 4 for up in ("up2_1", "up3_2", "up4_3")]
        joined = [
            Buffer(c + (d << level), level) for level, c in enumerate(above)
        ]  # [upsampled, encoder's result]

        def with_prompt(width: int, level: int) -> Slice:
            """A level's features, with room for its prompt behind them."""
            return Buffer(width + prompts[level - 1], level).slice(0, width)

        x = self._add("patch_embed", kernels.conv(n.patch_embed.proj.weight), None, joined[0].slice(above[0]))
        for level, down in ((1, "down1_2"), (2, "down2_3"), (3, "down3_4")):
            target = joined[level].slice(above[level]) if level < 3 else with_prompt(d << level, level)
            conv = kernels.conv(self._weight(down), shuffle=-2)
            x = self._add(down, conv, self._stage(f"encoder_level{level}", x), target)
        for level, stage, up, reduce in ((3, "latent", "up4_3", "reduce_chan_level3"),
                                         (2, "decoder_level3", "up3_2", "reduce_chan_level2"),
                                         (1, "decoder_level2", "up2_1", None)):  # fmt: skip
            x = self._stage(stage, x)
            block = n.get_submodule(f"prompt{level}")
            assert isinstance(block, PromptBlock)
            linear = block.linear_layer
            prompt = kernels.prompt(linear.weight, linear.bias, block.prompt_param, block.conv3x3.weight)
            self._add(f"prompt{level}", prompt, x, x.buffer.slice(x.last))
            x = self._stage(f"noise_level{level}", x.buffer.slice())
            noise = f"reduce_noise_level{level}"
            x = self._pointwise(noise, x, Buffer(len(self._weight(noise)), level).slice())
            below = level - 1
            conv = kernels.conv(self._weight(up), shuffle=2)
            x = self._add(up, conv, x, joined[below].slice(0, above[below])).buffer.slice()
            if reduce:
                x = self._pointwise(reduce, x, with_prompt(len(self._weight(reduce)), below))
        x = self._stage("refinement", self._stage("decoder_level1", x))
        self.steps.append(Step("output", kernels.conv(n.output.weight), x, None))

    def _weight(self, name: str) -> Tensor:
        weight = self._network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight

    def _add(self, name: str, op: Any, x: Slice | None, y: Slice) -> Slice:
        self.steps.append(Step(name, op, x, y))
        return y

    def _pointwise(self, name: str, x: Slice, y: Slice) -> Slice:
        return self._add(name, self._kernels.pointwise(self._weight(name)), x, y)

    def _stage(self, where: str, x: Slice) -> Slice:
        stage = self._network.get_submodule(where)
        for name, block in stage.named_modules(prefix=where):
            if isinstance(block, TransformerBlock):
                a, n, f, m = block.attn, block.norm1.body, block.ffn, block.norm2.body
                mdta = (
                    n.weight,
                    n.bias,
                    a.qkv.weight,
                    a.qkv_dwconv.weight,
                    a.temperature,
                    a.project_out.weight,
                )
                gdfn = m.weight, m.bias, f.project_in.weight, f.dwconv.weight, f.project_out.weight
                self._add(name, self._kernels.block(mdta, gdfn), x, x)
        return x
