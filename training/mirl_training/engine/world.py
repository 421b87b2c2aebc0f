"""The processes that train one network together: one, or those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

from mirl_sparse.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place among those that share every batch; ``rank`` 0 alone writes files."""

    rank: int = 0
    ranks: int = 1

    @classmethod
    def join(cls, device: str) -> World:
        """The world that torchrun's environment variables describe, or this process alone."""
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if ranks == 1:
            return cls()
        if not distributed.is_initialized():
            store, rank, ranks = next(distributed.rendezvous("env://"))
            if os.environ.get("LOCAL_WORLD_SIZE") == str(ranks):
                # On one machine torchrun keeps its store when it starts killed processes again: they would find the addresses
                # of those that are gone.
                store = distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks)
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return cls(distributed.get_rank(), ranks)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every process has come here."""
        if self.ranks > 1:
            distributed.barrier()

    def shared(self, find: Callable[[], T]) -> T:
        """What the first process finds: of several that look, a disk over a network may tell each something else."""
        if self.ranks == 1:
            return find()
        found = [find() if self.leads else None]
        distributed.broadcast_object_list(found)
        return found[0]  # type: ignore[return-value]

    def mean(self, value: float) -> float:
        """The mean over all processes of what each of them gives."""
        if self.ranks == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.item() / self.ranks

    def check(self, batch_size: int) -> None:
        """UserError where the processes' shares of a batch cannot be equal."""
        if batch_size % self.ranks:
            raise UserError(
                f"batch size {batch_size} cannot be shared by {self.ranks} processes; expected a multiple"
            )
