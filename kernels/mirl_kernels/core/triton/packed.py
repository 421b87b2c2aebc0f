"""Give all packed ops of the Triton kernels one check of their operands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def as_type(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight in another type; what that cannot hold becomes its largest number, not infinity."""
    largest = torch.finfo(dtype).max
    return weight.clamp(-largest, largest).to(dtype)


class Packed(nn.Module):
    """Hold an op's surviving weights for the Triton kernels.

    Attributes:
        dtype: The type of activations and weights: float16, bfloat16 or float32. Sums are float32.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def checked_output(
        self,
        x: Tensor,
        channels: int,
        y: Tensor | None,
        shape: Sequence[int],
        other_dtypes: Sequence[torch.dtype] = (),
        residual: Tensor | None = None,
    ) -> Tensor:
        """Check the operands of a call, and return the tensor to write to.

        Every operand must be (B, C, H, W) and not empty. Its planes must be contiguous and side by side, as
        the channels of a contiguous tensor are; the images of a batch may lie apart.

        Args:
            x: The input.
            channels: The channels that x must have.
            y: The tensor to write to, or None for a new one of type `dtype`.
            shape: The shape that y and ``residual`` must have.
            other_dtypes: Types that the operands may have beside `dtype`.
            residual: A tensor that the op adds, if it adds one.

        Raises:
            ValueError: If an operand has another shape, type or layout.
        """
        y = x.new_empty(shape, dtype=self.dtype) if y is None else y
        for name, t in (("x", x), ("y", y), ("residual", residual)):
            if t is None:
                continue
            planes = t.ndim == 4 and t.numel() > 0 and t[0].is_contiguous()
            if not planes or t.dtype not in (self.dtype, *other_dtypes):
                raise ValueError(
                    f"{name} is {t.dtype} {tuple(t.shape)} of strides {t.stride()}; "
                    f"expected {self.dtype} planes"
                )
            expected = (*x.shape[:1], channels, *x.shape[2:]) if t is x else tuple(shape)
            if t.shape != expected:
                raise ValueError(f"{name} is {tuple(t.shape)}; expected {expected}")
        return y
