"""Save the state of an unfinished round, small enough to travel, and read it bit for bit.

Tensors that are mostly zeros are stored without them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from mirl_sparse.files import write_whole

_BITS, _VALUES, _SHAPE = "nonzero bits", "nonzero values", "shape"


class RoundState(TypedDict):
    """Hold where a round was stopped.

    Attributes:
        round: Index of the round.
        step: Steps done.
        losses: Losses of the steps since the last validation.
        drawn: The last masks that the round would have left, by the parameters' names.
        engine: The engine that computed the steps, "fused" or "reference".
        threads: Number of threads that PyTorch had.
        mask: The round's mask, by the parameters' names.
        trainer: State of the trainer, from `Trainer.state_dict`.
    """

    round: int
    step: int
    losses: list[float]
    drawn: list[dict[str, Tensor]]
    engine: str
    threads: int
    mask: dict[str, Tensor]
    trainer: dict[str, Any]


def save_state(path: Path, state: RoundState) -> None:
    """Write a state whole or not at all.

    The weights of a pruned network, their average and the moments of the optimizers are zero where the mask
    is. Of such a tensor the file holds one bit per entry and the entries that are not zero: a twentieth of a
    dense state at 5% density.

    Args:
        path: Path of the file.
        state: Dicts, lists, tensors, numbers and strings.

    Raises:
        OSError: The disk is full, for example.
    """
    torch.save(_compact(state), buffer := io.BytesIO())  # torch.save itself hides why a disk takes no more
    write_whole(path, buffer.getvalue())


def load_state(path: Path) -> RoundState:
    """Read what `save_state` wrote, onto the CPU, without running anything that the file holds."""
    state: RoundState = _restore(torch.load(path, weights_only=True, map_location="cpu"))
    return state


def _compact(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _compact(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_compact(v) for v in value]
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu().contiguous()
    if value.dtype == torch.bool:
        return {_BITS: _pack(value), _SHAPE: list(value.shape)}
    if value.dtype == torch.float32 and value.ndim:
        present = value.view(torch.int32) != 0  # by their bits: -0.0 is kept
        if 2 * int(present.sum()) < value.numel():
            return {_BITS: _pack(present), _SHAPE: list(value.shape), _VALUES: value[present]}
    return value


def _pack(present: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(present.flatten().numpy()))


def _restore(value: Any) -> Any:
    if isinstance(value, list):
        return [_restore(v) for v in value]
    if not isinstance(value, dict):
        return value
    if _BITS not in value:
        return {k: _restore(v) for k, v in value.items()}
    shape = torch.Size(value[_SHAPE])
    bits = np.unpackbits(value[_BITS].numpy(), count=shape.numel()).astype(bool)
    present = torch.from_numpy(bits).view(shape)
    if _VALUES not in value:
        return present
    return torch.zeros(shape).masked_scatter_(present, value[_VALUES])
