"""PromptIR as a list of steps on buffers, whatever computes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from mirl_sparse.network import PromptBlock, PromptIR, TransformerBlock


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
    """The network as a list of steps. What will be concatenated is written side by side in the first place."""

    def __init__(self, network: PromptIR, kernels: Kernels) -> None:
        self.steps: list[Step] = []
        self._kernels = kernels
        self._network = n = network
        d, prompts = n.config.dim, n.config.prompt_dims
        x = self._add("patch_embed", kernels.conv(n.patch_embed.proj.weight), None, Buffer(d, 0).slice())
        joined = []  # [upsampled, encoder's result] of each level
        for level, (down, up) in enumerate((("down1_2", "up2_1"), ("down2_3", "up3_2"), ("down3_4", "up4_3"))):
            width, above = d << level, len(self._weight(up)) // 4
            joined.append(Buffer(above + width, level))
            x = self._stage(f"encoder_level{level + 1}", x, joined[level].slice(above))
            x = self._add(down, kernels.conv(self._weight(down), shuffle=-2), x, Buffer(2 * width, level + 1).slice())
        for level, stage, up, reduce in ((3, "latent", "up4_3", "reduce_chan_level3"),
                                         (2, "decoder_level3", "up3_2", "reduce_chan_level2"),
                                         (1, "decoder_level2", "up2_1", None)):  # fmt: skip
            width = x.last - x.first
            both = Buffer(width + prompts[level - 1], level)  # [features, prompt]
            x = self._stage(stage, x, both.slice(0, width))
            block = n.get_submodule(f"prompt{level}")
            assert isinstance(block, PromptBlock)
            linear = block.linear_layer
            prompt = kernels.prompt(linear.weight, linear.bias, block.prompt_param, block.conv3x3.weight)
            self._add(f"prompt{level}", prompt, x, both.slice(width))
            x = self._pointwise(f"reduce_noise_level{level}", self._stage(f"noise_level{level}", both.slice()), level)
            target = joined[level - 1]
            self._add(up, kernels.conv(self._weight(up), shuffle=2), x, target.slice(0, len(self._weight(up)) // 4))
            x = self._pointwise(reduce, target.slice(), level - 1) if reduce else target.slice()
        x = self._stage("refinement", self._stage("decoder_level1", x))
        self.steps.append(Step("output", kernels.conv(n.output.weight), x, None))

    def _weight(self, name: str) -> Tensor:
        weight = self._network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight

    def _add(self, name: str, op: Any, x: Slice | None, y: Slice) -> Slice:
        self.steps.append(Step(name, op, x, y))
        return y

    def _pointwise(self, name: str, x: Slice, level: int) -> Slice:
        weight = self._weight(name)
        return self._add(name, self._kernels.pointwise(weight), x, Buffer(len(weight), level).slice())

    def _stage(self, where: str, x: Slice, target: Slice | None = None) -> Slice:
        """A stage's blocks in place, the last one's result in ``target``."""
        stage = self._network.get_submodule(where)
        found = [(n, b) for n, b in stage.named_modules(prefix=where) if isinstance(b, TransformerBlock)]
        for i, (name, block) in enumerate(found):
            a, n, f, m = block.attn, block.norm1.body, block.ffn, block.norm2.body
            mdta = n.weight, n.bias, a.qkv.weight, a.qkv_dwconv.weight, a.temperature, a.project_out.weight
            gdfn = m.weight, m.bias, f.project_in.weight, f.dwconv.weight, f.project_out.weight
            x = self._add(name, self._kernels.block(mdta, gdfn), x, target if target and i == len(found) - 1 else x)
        return x
