"""Ask how much memory a device has left."""

from __future__ import annotations

import torch

from mirl_sparse.memory import available_memory


def available_on(device: torch.device) -> int | None:
    """Return how much memory of a device can be used now, in bytes, or None if that is not known.

    On a GPU, it includes what PyTorch has reserved and does not use.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return available_memory() if device.type == "cpu" else None
