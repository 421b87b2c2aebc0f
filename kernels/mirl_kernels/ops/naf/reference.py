"""Define NAFNet's block (Simple Baselines for Image Restoration, ECCV 2022, figure 3c)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from mirl_kernels.core.layer_norm import layer_norm


def naf(
    x: Tensor,
    norms: Sequence[tuple[Tensor, Tensor, float]],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    beta: Tensor,
    gamma: Tensor,
) -> Tensor:
    """Return ``y + gamma * conv5(SG(conv4(norm2(y))))``.

    The first half is ``y = x + beta * conv3(SCA(SG(conv2(conv1(norm1(x))))))``.

    SG, the simple gate, is the product of a tensor's two halves. SCA, the simplified channel attention,
    multiplies each channel by a 1x1 convolution of all channels' means over the image.

    Args:
        x: (B, C, H, W).
        norms: Gain (C,), bias (C,) and epsilon of both norms.
        weights: Those of conv1 (2p, C, 1, 1), conv2 (2p, 1, 3, 3), SCA (p, p, 1, 1), conv3 (C, p, 1, 1),
            conv4 (2q, C, 1, 1) and conv5 (C, q, 1, 1), for p and q pairs of hidden channels.
        biases: Those of the same six, or None for each.
        beta: (C,) scale of the first half.
        gamma: (C,) scale of the second half.

    Returns:
        (B, C, H, W).
    """
    conv1, conv2, sca, conv3, conv4, conv5 = zip(weights, biases, strict=True)
    hidden = F.conv2d(layer_norm(x, *norms[0]), *conv1)
    left, right = F.conv2d(hidden, *conv2, padding=1, groups=hidden.shape[1]).chunk(2, dim=1)
    gated = left * right
    gated = gated * F.conv2d(gated.mean((2, 3), keepdim=True), *sca)
    y = x + beta[:, None, None] * F.conv2d(gated, *conv3)
    left, right = F.conv2d(layer_norm(y, *norms[1]), *conv4).chunk(2, dim=1)
    return y + gamma[:, None, None] * F.conv2d(left * right, *conv5)
