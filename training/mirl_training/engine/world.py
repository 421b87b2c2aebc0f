"""Join the processes that train one network together: one alone, or those that torchrun started."""

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
    """Hold this process's place among those that share every batch.

    Attributes:
        rank: Rank of this process, from 0; rank 0 alone writes files.
        ranks: Number of processes.
    """

    rank: int = 0
    ranks: int = 1

    @classmethod
    def join(cls, device: str) -> World:
        """Return the world that torchrun's environment variables describe, or this process alone.

        Args:
            device: "cpu" or "cuda"; with "cuda" each process takes the GPU of its local rank.
        """
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if ranks == 1:
            return cls()
        if not distributed.is_initialized():
            store, rank, ranks = next(distributed.rendezvous("env://"))
            if os.environ.get("LOCAL_WORLD_SIZE") == str(ranks):
                # On one machine torchrun keeps its store when it starts killed processes again: they would
                # find the addresses of those that are gone.
                store = distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
            backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
            distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks)
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return cls(distributed.get_rank(), ranks)

    @property
    def leads(self) -> bool:
        """Return whether this process is the first one."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.ranks > 1:
            distributed.barrier()

    def shared(self, find: Callable[[], T]) -> T:
        """Return what the first process finds.

        A disk over a network may tell several processes several things.
        """
        if self.ranks == 1:
            return find()
        values = [find() if self.leads else None]
        distributed.broadcast_object_list(values)
        return values[0]  # type: ignore[return-value]

    def mean(self, value: float) -> float:
        """Return the mean of the values of all processes."""
        if self.ranks == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.item() / self.ranks

    def check(self, batch_size: int) -> None:
        """Raise UserError unless all processes can have equal shares of a batch."""
        if batch_size % self.ranks:
            raise UserError(
                f"batch size {batch_size} cannot be shared by {self.ranks} processes; expected a multiple"
            )
