"""Pack pruned weights as tickets store them: one bit for each weight, and the values that are left."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mirl_sparse.errors import FileContentError

MASK, VALUES, SHAPE = ".mask", ".values", ".shape"


class TicketError(FileContentError):
    """Report a file that holds no ticket; the message is one line for the user."""


def pack_weight(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Return the tensors NAME.mask and NAME.values of a weight.

    Args:
        name: Name of the weight.
        weight: Its values, zeros included.
    """
    alive = weight != 0
    return {
        name + MASK: torch.from_numpy(np.packbits(alive.flatten().numpy())),
        name + VALUES: weight[alive].contiguous(),
    }


def unpack_weight(name: str, shape: torch.Size, bits: Tensor, values: Tensor) -> Tensor:
    """Return the float32 weight of a mask and its values.

    Args:
        name: Name of the weight, for messages.
        shape: Shape of the weight.
        bits: NAME.mask: uint8, a bit for each weight, eight to a byte, in row-major order.
        values: NAME.values: the weights whose bit is 1.

    Raises:
        TicketError: The three do not belong together.
    """
    if bits.dtype != torch.uint8 or bits.shape != (-(-shape.numel() // 8),):
        raise TicketError(
            f"its mask of {name} is {bits.dtype} {tuple(bits.shape)};"
            f" expected a bit for each of {shape.numel()} weights"
        )
    alive = torch.from_numpy(np.unpackbits(bits.numpy(), count=shape.numel()).astype(bool))
    if alive.sum() != values.numel():
        raise TicketError(f"has {values.numel()} values for {int(alive.sum())} alive weights of {name}")
    return torch.zeros(shape, dtype=torch.float32).masked_scatter_(alive.view(shape), values)
