"""Define the prompt block (PromptIR, NeurIPS 2023, section 3.1)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def mixture(x: Tensor, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor) -> Tensor:
    """Return the input of the convolution in `prompt`.

    Args:
        x: As for `prompt`.
        linear_weight: Likewise.
        linear_bias: Likewise.
        prompt_param: Likewise.

    Returns:
        (B, P, H, W).
    """
    weights = F.linear(x.mean(dim=(2, 3)), linear_weight, linear_bias).softmax(dim=1)
    mixed = torch.einsum("bn,npij->bpij", weights, prompt_param[0])
    return F.interpolate(mixed, x.shape[2:], mode="bilinear", align_corners=False)


def prompt(
    x: Tensor, linear_weight: Tensor, linear_bias: Tensor, prompt_param: Tensor, conv3x3: Tensor
) -> Tensor:
    """Return a mixture of the learned prompts, weighted by what x looks like, at the size of x.

    Args:
        x: (B, C, H, W).
        linear_weight: (N, C), for N prompts.
        linear_bias: (N,).
        prompt_param: (1, N, P, S, S): prompts of P channels and side S.
        conv3x3: (P, P, 3, 3).

    Returns:
        (B, P, H, W).
    """
    return F.conv2d(mixture(x, linear_weight, linear_bias, prompt_param), conv3x3, padding=1)
