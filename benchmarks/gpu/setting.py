"""Hold what the stages measure on: the device, and the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.summary import REHEARSAL
from mirl_kernels.core.triton import Workspace
from mirl_sparse.architectures.promptir import PromptIR, PromptIRConfig
from mirl_sparse.runtime import gpu
from mirl_sparse.runtime.triton_network import PackedNetwork, workspace

# A network and images that Triton's interpreter can run, to rehearse with.
TINY = PromptIRConfig(
    8,
    (1, 1, 1, 1),
    1,
    heads=(1, 1, 2, 2),
    prompt_dims=(4, 4, 8),
    prompt_sizes=(4, 4, 4),
    prompt_count=2,
    unused_layers=False,
)
TICKET = "layerwise", 0.107


@dataclass(frozen=True)
class Setting:
    """Hold what all stages share.

    Attributes:
        rehearsal: Whether everything runs in Triton's interpreter, on a tiny network. No time means anything
            then.
    """

    rehearsal: bool = False

    @property
    def device(self) -> torch.device:
        """Return the device that everything runs on."""
        return gpu.device()

    @property
    def name(self) -> str:
        """Return the name of the GPU."""
        return REHEARSAL if self.rehearsal else torch.cuda.get_device_name()

    @cached_property
    def network(self) -> PromptIR:
        """Return the network that is measured: full-size, 10.7% of every layer, random weights."""
        from benchmarks.gpu.prepared import network_of
        from benchmarks.suite.tickets import network

        return network_of(lambda: network(*TICKET, TINY if self.rehearsal else None))

    def image(self, batch: int = 1, side: int = 256) -> Tensor:
        """Return random images on the device; in a rehearsal they are tiny."""
        if self.rehearsal:
            batch, side = min(batch, 2), 8 if side < 256 else 16
        generator = torch.Generator().manual_seed(side)
        return torch.rand(batch, 3, side, side, generator=generator).to(self.device)

    def rounds(self, count: int) -> int:
        """Return how many rounds contenders are timed in; one in a rehearsal."""
        return 1 if self.rehearsal else count

    def packed(self, dtype: torch.dtype = torch.float16) -> tuple[PackedNetwork, Workspace]:
        """Return the network packed on the device, and a workspace for it."""
        from benchmarks.gpu.prepared import packed_network

        packed = packed_network(self.network, dtype)
        packed.to(self.device)
        return packed, self.workspace()

    def workspace(self) -> Workspace:
        """Return a new workspace for the device."""
        return workspace(self.device, {})

    def seconds(self, call: Callable[[], Any], replayed: bool = True) -> float:
        """Return the seconds of a call, see `gpu.seconds`."""
        return gpu.seconds(call, replayed)

    def synchronize(self) -> None:
        """Wait for the device."""
        if not self.rehearsal:
            torch.cuda.synchronize()
