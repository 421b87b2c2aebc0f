"""Train a prompt block by its surviving weights.

PyTorch mixes and resizes the prompts, which is little; the convolution runs by surviving weights.
"""

from __future__ import annotations

from torch import Tensor

from mirl_kernels.ops.conv.backward import TrainableConv
from mirl_kernels.ops.prompt.reference import mixture


class TrainablePrompt:
    """Run the prompt block (`mirl_kernels.ops.prompt.prompt`) with the weights that survive masks.

    Args:
        linear_weight: Mask, bool, in the weight's shape.
        conv3x3: Mask, likewise.
    """

    def __init__(self, linear_weight: Tensor, conv3x3: Tensor) -> None:
        self._linear, self._conv = linear_weight, TrainableConv(conv3x3)

    def __call__(
        self, x: Tensor, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor
    ) -> Tensor:
        """Return the prompts for x, differentiable once by all arguments.

        Gradients of pruned weights are zero. The arguments are those of the definition.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """
        alive = linear_weight.masked_fill(~self._linear, 0)
        return self._conv(mixture(x, alive, linear_bias, prompt_param), conv3x3)
