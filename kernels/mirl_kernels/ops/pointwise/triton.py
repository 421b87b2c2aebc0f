"""Run sparse 1x1 convolutions on GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from mirl_kernels.core.triton import Packed, Workspace, pack_row_groups
from mirl_kernels.core.triton.product import project


class TritonPointwise(Packed):
    """Hold the surviving weights of a 1x1 convolution for the Triton kernels.

    Args:
        weight: (O, C, 1, 1).
        bias: (O,), or None.
        dtype: The type of activations and weights.
    """

    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float16
    ) -> None:
        super().__init__(dtype)
        self.matrix = pack_row_groups(weight.detach().flatten(1), dtype)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor, y: Tensor | None = None, workspace: Workspace | None = None) -> Tensor:
        """Return the convolution of x.

        Args:
            x: (B, C, H, W) of ``dtype``.
            y: The tensor to write to, (B, O, H, W), or None for a new one.
            workspace: What it shares with other ops; by default a workspace of its own.
        """
        y = self.checked_output(x, self.matrix.columns, y, (len(x), self.matrix.rows, *x.shape[2:]))
        project(x, y, self.matrix, workspace or Workspace(), self.bias)
        return y
