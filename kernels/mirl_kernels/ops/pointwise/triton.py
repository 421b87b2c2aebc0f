"""1x1 convolutions on GPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from mirl_kernels.core.triton import Packed, pack_panels
from mirl_kernels.core.triton.product import project


class TritonPointwise(Packed):
    """A sparse 1x1 convolution: weight (O, C, 1, 1), bias (O,)."""

    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.float16
    ) -> None:
        super().__init__(dtype)
        self.matrix = pack_panels(weight.detach().flatten(1), dtype)
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, C, H, W) to (B, O, H, W)."""
        y = self.check(x, self.matrix.columns, y, (len(x), self.matrix.rows, *x.shape[2:]))
        project(x, y, self.matrix, bias=self.bias)
        return y
