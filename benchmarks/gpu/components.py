"""Say of every launch what the model says, so that it can be fitted to what was measured.

It counts every tap, which takes a minute; so it is prepared where there is time for it (`prepare`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from mirl_sparse.performance.dense_operators import eager_operators, record
from mirl_sparse.runtime.program import Step
from mirl_sparse.runtime.triton_network import PackedNetwork, launches

SIDES = 256, 1024  # of the images whose launches are timed one by one


def all_components(packed: PackedNetwork, gpu: str, sides: dict[int, int] | None = None) -> dict[str, Any]:
    """Return the components of the launches for each of `SIDES`, and of the dense steps for the first.

    Args:
        packed: The network, on the CPU.
        gpu: One of `mirl_kernels.core.triton.model.GPUS`.
        sides: The sides that images have instead, by side.
    """
    sides = sides or {side: side for side in SIDES}
    result = {f"launches {side}": launch_components(packed, actual, gpu) for side, actual in sides.items()}
    return result | {f"dense {SIDES[0]}": dense_components(packed, sides[SIDES[0]], gpu)}


def launch_components(packed: PackedNetwork, side: int, gpu: str) -> list[list[Any]]:
    """Return of each launch its tile and the microseconds of each part of the GPU (`model.Predicted`)."""
    from mirl_kernels.core.triton.model import GPUS, predict
    from mirl_kernels.core.triton.offline import compile_ahead, compile_for

    peaks = GPUS[gpu]
    every = [x for step in launches(packed, (1, side, side), peaks.workspace()).values() for x in step]
    compile_ahead(peaks.architecture, every)
    rows = []
    for launch in every:
        chosen = compile_for(peaks.architecture, launch)[0]
        rows.append([repr(chosen.tile), *map(_us, astuple(predict(chosen, peaks)))])
    return rows


@torch.no_grad()
def dense_components(packed: PackedNetwork, side: int, gpu: str) -> list[list[Any]]:
    """Return of each step its name, its dense operators, and their microseconds at the peaks by kind."""
    from mirl_kernels.core.triton.model import GPUS

    image, rows = torch.empty(1, 3, side, side, device="meta"), []

    def describe(step: Step, *operands: Tensor, **more: Tensor) -> None:
        op = packed.dense[step.name].to("meta")
        kinds: dict[str, float] = defaultdict(float)
        operators = eager_operators(record(lambda: op(*operands, **more)))
        for operator in operators:
            kinds[operator.kind.value] += operator.seconds(GPUS[gpu], 0.0)
        rows.append([step.name, len(operators), {kind: _us(seconds) for kind, seconds in kinds.items()}])

    packed.run(image, image, describe)
    return rows


def _us(seconds: float) -> float:
    return float(f"{seconds * 1e6:.4g}")
