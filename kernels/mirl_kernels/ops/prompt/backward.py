"""The prompt block in training: PyTorch mixes and resizes, which is little, and the convolution runs by surviving weights."""

from __future__ import annotations

from torch import Tensor

from mirl_kernels.ops.conv.backward import TrainableConv
from mirl_kernels.ops.prompt.reference import mixture


class TrainablePrompt:
    """The prompt block (`mirl_kernels.ops.prompt.reference`) with the surviving weights of masks: bool, in the weights' shapes."""

    def __init__(self, linear_weight: Tensor, conv3x3: Tensor) -> None:
        self._linear, self._conv = linear_weight, TrainableConv(conv3x3)

    def __call__(
        self, x: Tensor, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor
    ) -> Tensor:
        """Differentiable once, by all arguments. Gradients of pruned weights are zero."""
        alive = linear_weight.masked_fill(~self._linear, 0)
        return self._conv(mixture(x, alive, linear_bias, prompt_param), conv3x3)
