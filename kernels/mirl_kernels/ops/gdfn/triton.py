"""Run GDFN on GPUs in two kernels: the norm with project_in, then taps, gate, project_out and residual.

The hidden channels are written once and read once, in memory or, strip by strip, in the cache alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mirl_kernels.core.triton import Packed, Workspace, as_type, hidden_planes, pack_row_groups
from mirl_kernels.core.triton.product import project
from mirl_kernels.core.triton.taps import Taps, mix, step_for
from mirl_kernels.ops.gdfn import live_pairs


class TritonGDFN(Packed):
    """Hold the surviving weights of one GDFN for the Triton kernels.

    Dead pairs are removed, which changes no result. The arguments are those of `reference`.

    Args:
        norm_weight: (C,).
        norm_bias: (C,), or None for a norm that does not subtract the mean.
        project_in: (2 * H, C, 1, 1).
        dwconv: (2 * H, 1, 3, 3).
        project_out: (C, H, 1, 1).
        biases: Those of project_in, dwconv and project_out.
        dtype: The type of activations and weights: float16, bfloat16 or float32. Sums are float32.
    """

    offset: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        norm_weight: Tensor,
        norm_bias: Tensor | None,
        project_in: Tensor,
        dwconv: Tensor,
        project_out: Tensor,
        biases: Sequence[Tensor | None] = (None, None, None),
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__(dtype)
        fan_in, taps, out = (w.detach().float().flatten(1) for w in (project_in, dwconv, project_out))
        live = live_pairs(fan_in, taps, out, biases)
        counts = taps.count_nonzero(1).view(2, -1)[:, live].amax(0)
        live = live[counts.argsort(stable=True)]  # a step takes as long as its channel of most taps
        rows = torch.cat([live, live + out.shape[1]])
        self.centred = norm_bias is not None
        offset = torch.zeros(len(fan_in)) if biases[0] is None else biases[0].detach().float()
        if norm_bias is not None:  # exact before the zero padding of the taps
            offset = offset + fan_in @ norm_bias.detach().float()
        self.project_in = pack_row_groups((fan_in * norm_weight.detach().float())[rows], dtype)
        self.register_buffer("offset", offset[rows])
        tap_bias = None if biases[1] is None else biases[1].detach().float()[rows]
        self.taps = Taps(torch.arange(len(rows)), taps[rows], tap_bias, 2, step_for(len(live)))
        self.register_buffer("weight", as_type(out[:, live].T.contiguous(), dtype))
        self.register_buffer("bias", None if biases[2] is None else biases[2].detach().float())

    def forward(self, x: Tensor, y: Tensor | None = None, workspace: Workspace | None = None) -> Tensor:
        """Return x plus the GDFN of x.

        Args:
            x: (B, C, H, W) of ``dtype``.
            y: The tensor to write to, which must not be x, or None for a new one.
            workspace: What it shares with other ops; by default a workspace of its own.
        """
        y = self.checked_output(x, self.weight.shape[1], y, x.shape)
        workspace = workspace or Workspace()
        pairs, strips = hidden_planes(x, len(self.offset), self.dtype, workspace)
        for strip in strips:
            if len(self.offset):
                project(x, pairs, self.project_in, workspace, self.offset, True, self.centred, strip)
            mix(pairs, self.taps, self.weight, self.bias, x, y, True, strip, workspace)
        return y
