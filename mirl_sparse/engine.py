"""PromptIR on the C++ kernels: every layer packed once, every buffer planned once per image size."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from mirl_kernels import _cpu
from mirl_kernels.conv import PackedConv
from mirl_kernels.gdfn import PackedGDFN
from mirl_kernels.mdta import PackedMDTA
from mirl_kernels.pointwise import PackedPointwise
from mirl_kernels.prompt import PackedPrompt
from mirl_sparse.network import MULTIPLE, PromptBlock, PromptIR, TransformerBlock

_PLANS_KEPT, _BYTES_KEPT = 2, 1 << 30  # how many sizes' buffers are kept, while they are no larger than this


class _Block:
    """One transformer block: MDTA in place, GDFN to the other of two buffers."""

    def __init__(self, block: TransformerBlock) -> None:
        a, n, f, m = block.attn, block.norm1.body, block.ffn, block.norm2.body
        self.mdta = PackedMDTA(n.weight, n.bias, a.qkv.weight, a.qkv_dwconv.weight, a.temperature, a.project_out.weight)
        self.gdfn = PackedGDFN(m.weight, m.bias, f.project_in.weight, f.dwconv.weight, f.project_out.weight)


class _Plan:
    """The buffers of one input size.

    ``level`` holds, per resolution, a pair of buffers of equal size that blocks go back and forth
    between; concatenations are made by writing side by side into one of them.
    """

    def __init__(self, network: PromptIR, batch: int, height: int, width: int) -> None:
        config = network.config
        widest = [0, 0, 0, 0]
        for where, channels, _ in config.attention_widths():
            at = {"latent": 3, "noise_level3": 3, "refinement": 0, "noise_level2": 2, "noise_level1": 1}.get(where)
            at = int(where[-1]) - 1 if at is None else at
            widest[at] = max(widest[at], channels)
        widest[2] = max(widest[2], 6 * config.dim)  # [up4_3, encoder_level3]
        widest[1] = max(widest[1], 4 * config.dim)
        shapes = [(batch, c, height >> i, width >> i) for i, c in enumerate(widest)]
        self.level = [(_cpu.empty(*s), _cpu.empty(*s)) for s in shapes]
        self.skips = [_cpu.empty(batch, config.dim << i, height >> i, width >> i) for i in range(3)]
        floats = max(b * c * h * _cpu.padded(w) for b, c, h, w in shapes)  # as MDTA wants for its v channels
        prompts = zip(config.prompt_dims, config.prompt_sizes, (1, 2, 3), strict=True)
        for channels, side, i in prompts:
            floats = max(floats, batch * channels * (side * side + (height >> i) * (width >> i)))
        self.scratch = torch.empty(floats)
        tensors = [self.scratch, *self.skips, *(x for pair in self.level for x in pair)]
        self.bytes = sum(t.untyped_storage().nbytes() for t in tensors)


class Engine:
    """A PromptIR packed for the C++ kernels. Several threads may call it: each takes buffers of its own."""

    def __init__(self, network: PromptIR) -> None:
        self.network = network
        self._plans: OrderedDict[tuple[int, int, int], _Plan] = OrderedDict()
        with torch.no_grad():
            self._pack(network)

    def _pack(self, n: PromptIR) -> None:
        if (device := n.output.weight.device).type != "cpu":
            raise _cpu.BackendError(f'weights are on {device}; expected the CPU: move them, or use backend="reference"')

        def blocks(stage: nn.Module) -> list[_Block]:
            found = [stage] if isinstance(stage, TransformerBlock) else list(stage.children())
            return [_Block(block) for block in found if isinstance(block, TransformerBlock)]

        self.blocks = {where: blocks(getattr(n, where)) for where, _, _ in n.config.attention_widths()}
        self.conv = {name: PackedConv(getattr(n, name).weight, -2) for name in ("down1_2", "down2_3", "down3_4")}
        self.conv |= {name: PackedConv(getattr(n, name).weight, 2) for name in ("up4_3", "up3_2", "up2_1")}
        self.conv |= {"patch_embed": PackedConv(n.patch_embed.proj.weight), "output": PackedConv(n.output.weight)}
        names = [f"reduce_noise_level{i}" for i in (1, 2, 3)] + ["reduce_chan_level2", "reduce_chan_level3"]
        self.pointwise = {name: PackedPointwise(getattr(n, name).weight) for name in names}
        self.prompt = {}
        for i in (1, 2, 3):
            block = getattr(n, f"prompt{i}")
            assert isinstance(block, PromptBlock)
            linear = block.linear_layer
            self.prompt[i] = PackedPrompt(linear.weight, linear.bias, block.prompt_param, block.conv3x3.weight)

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float32 on the CPU, H and W multiples of 8, to a new tensor of that shape."""
        batch, _, height, width = image.shape
        if height % MULTIPLE or width % MULTIPLE:
            raise ValueError(f"input is {height}x{width}; expected multiples of {MULTIPLE}")
        key = batch, height, width
        plan = self._plans.pop(key, None)  # ours alone until it is put back
        if plan is None:
            if sum(kept.bytes for kept in list(self._plans.values())) > _BYTES_KEPT:
                self._plans.clear()
            with torch.inference_mode(False):  # else a later call outside of that mode might not write to them
                plan = _Plan(self.network, *key)
        out = self._run(image, plan)
        self._plans[key] = plan
        while len(self._plans) > _PLANS_KEPT:
            self._plans.popitem(last=False)
        return out

    def _run(self, image: Tensor, plan: _Plan) -> Tensor:
        d = self.network.config.dim

        def stage(where: str, level: int, channels: int, source: int = 0) -> tuple[Tensor, int]:
            """Run a stage's blocks on buffer ``source`` of a level; returns the result and where it is."""
            for block in self.blocks[where]:
                x, y = (plan.level[level][i][:, :channels] for i in (source, 1 - source))
                block.mdta(x, x, plan.scratch)
                block.gdfn(x, y)
                source = 1 - source
            return plan.level[level][source][:, :channels], source

        x = plan.level[0][0][:, :d]
        self.conv["patch_embed"](image, x)
        for level in (1, 2, 3):
            x, _ = stage(f"encoder_level{level}", level - 1, d << (level - 1))
            plan.skips[level - 1].copy_(x)
            to = plan.level[level][0][:, : d << level]
            self.conv[f"down{level}_{level + 1}"](x, to)
        x, at = stage("latent", 3, 8 * d)

        for level, (up, reduce) in zip((3, 2, 1), (("up4_3", "reduce_chan_level3"), ("up3_2", "reduce_chan_level2"),
                                                   ("up2_1", None)), strict=True):  # fmt: skip
            # x sits in buffer `at` of the level below: its prompt goes beside it.
            width, prompts = x.shape[1], self.network.config.prompt_dims[level - 1]
            pair = plan.level[level]
            self.prompt[level](x, pair[at][:, width : width + prompts], plan.scratch)
            x, at = stage(f"noise_level{level}", level, width + prompts, at)
            reduced = pair[1 - at][:, : d << (level if level == 1 else 2)]
            self.pointwise[f"reduce_noise_level{level}"](x, reduced)
            above = plan.level[level - 1]
            upper = above[0][:, : reduced.shape[1] // 2]
            skip = plan.skips[level - 1]
            self.conv[up](reduced, upper)
            joined = above[0][:, : upper.shape[1] + skip.shape[1]]
            joined[:, upper.shape[1] :].copy_(skip)
            at = 0
            if reduce:
                self.pointwise[reduce](joined, above[1][:, : d << (level - 1)])
                at = 1
            x, at = stage(f"decoder_level{level}", level - 1, d << max(level - 1, 1), at)
        x, _ = stage("refinement", 0, 2 * d, at)
        out = torch.empty_like(image)
        self.conv["output"](x, out, image)
        return out
