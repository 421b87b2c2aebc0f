"""GDFN on GPUs: the norm with project_in, then taps, gate, project_out and residual; the hidden channels touch memory once
each way, or, strip by strip, the cache alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mirl_kernels.core.triton import Packed, hidden, pack_panels
from mirl_kernels.core.triton.product import project
from mirl_kernels.core.triton.taps import Taps, mix
from mirl_kernels.ops.gdfn import ordered_pairs


class TritonGDFN(Packed):
    """The surviving weights of one GDFN for the Triton kernels, dead pairs removed exactly; arguments as in `reference`.

    Activations are of ``dtype`` (float16, bfloat16 or float32), sums float32.
    """

    offset: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(self, norm_weight: Tensor, norm_bias: Tensor | None, project_in: Tensor, dwconv: Tensor,
                 project_out: Tensor, biases: Sequence[Tensor | None] = (None, None, None),
                 dtype: torch.dtype = torch.float16) -> None:  # fmt: skip
        super().__init__(dtype)
        fan_in, taps, out = (w.detach().float().flatten(1) for w in (project_in, dwconv, project_out))
        live, rows = ordered_pairs(fan_in, taps, out, biases)
        self.centred = norm_bias is not None
        offset = torch.zeros(len(fan_in)) if biases[0] is None else biases[0].detach().float()
        if norm_bias is not None:  # exact before the zero padding of the taps
            offset = offset + fan_in @ norm_bias.detach().float()
        self.project_in = pack_panels((fan_in * norm_weight.detach().float())[rows], dtype)
        self.register_buffer("offset", offset[rows])
        tap_bias = None if biases[1] is None else biases[1].detach().float()[rows]
        self.taps = Taps(torch.arange(len(rows)), taps[rows], tap_bias, halves=2)
        self.register_buffer("weight", out[:, live].T.contiguous().to(dtype))
        self.register_buffer("bias", None if biases[2] is None else biases[2].detach().float())

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) of ``dtype`` to the same shape, written into ``y``, which is not x, if given."""
        y = self.check(x, self.weight.shape[1], y, x.shape)
        pairs, strips = hidden(x, len(self.offset), self.dtype)
        for strip in strips:
            if len(self.offset):
                project(x, pairs, self.project_in, self.offset, norm=True, centred=self.centred, strip=strip)
            mix(pairs, self.taps, self.weight, self.bias, x, y, gate=True, strip=strip)
        return y
