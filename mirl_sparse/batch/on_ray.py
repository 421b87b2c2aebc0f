"""Run workers as actors of a Ray cluster.

Actors, not Ray Data: a photo that kills its worker is told apart from the others, and each result is reported
as it comes. Ray Data works in blocks; a lost worker would repeat a block, a bad photo would end it.
"""

from __future__ import annotations

import io
import logging
import os
import platform
import tempfile
import time
from concurrent.futures import Future
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from mirl_kernels.errors import BackendError
from mirl_sparse.batch.dispatch import Death, Event, Pool, Ready
from mirl_sparse.batch.report import Outcome
from mirl_sparse.batch.worker import Task, Worker, WorkerSettings, processors
from mirl_sparse.errors import UserError

_NODE_DIED = "its node has died"  # as Ray says of an actor
_LOOK_EVERY = 5.0  # seconds between looks for new machines
_START_ERRORS = (UserError, BackendError, ModuleNotFoundError, MemoryError)


class Actor:
    """Be a worker on some machine of the cluster.

    Args:
        settings: What to do; the ticket is named by its file's name.
        ticket: The content of the ticket file, which other machines lack.
    """

    def __init__(self, settings: WorkerSettings, ticket: bytes) -> None:
        self._settings, self._ticket = settings, ticket

    def load(self) -> str | Exception:
        """Load the ticket; return the id of the node, or why it cannot be loaded."""
        import ray

        os.environ["OMP_NUM_THREADS"] = str(self._settings.threads)
        node = ray.get_runtime_context().get_node_id()
        neighbours = max(1, processors() // self._settings.threads)
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, self._settings.ticket)
                file.write_bytes(self._ticket)
                settings = replace(self._settings, ticket=str(file))
                self._worker = Worker(settings, f"{platform.node()}/{node[:8]}", neighbours)
        except _START_ERRORS as error:
            return error
        return node

    def run(self, task: Task) -> Outcome:
        """Restore a photo."""
        return self._worker.run(task)


class _Nowhere(io.TextIOBase):
    """Take text and keep none of it."""

    def write(self, text: str) -> int:
        """Forget a text."""
        return len(text)


@dataclass(eq=False)
class _Handle:
    """Hold an actor, and the id of its node once it is known."""

    actor: Any
    node: str = ""


class RayPool(Pool[_Handle]):
    """Hold one actor for so many processors of the cluster; machines may come and go.

    Args:
        settings: What they do.
        ticket: The file of the ticket.
        workers: How many actors; None for as many as there is room for, now and later.
        address: A cluster's address; None for RAY_ADDRESS, or the cluster of this machine, or a new one.

    Raises:
        UserError: There is no such cluster, or no room in it.
    """

    def __init__(
        self, settings: WorkerSettings, ticket: Path, workers: int | None = None, address: str | None = None
    ) -> None:
        super().__init__()
        self._ray = _connect(address)
        # Ray prints pages there about each worker that is lost; what matters is in the report.
        self._silence = redirect_stdout(_Nowhere())
        self._silence.__enter__()
        self._settings = replace(settings, ticket=ticket.name)
        self._ticket = self._ray.put(ticket.read_bytes())
        self._actor = self._ray.remote(num_cpus=settings.threads, max_restarts=0, max_task_retries=0)(Actor)
        self._workers, self._looked = workers, 0.0
        self._events: SimpleQueue[tuple[_Handle, Future[Any]]] = SimpleQueue()
        self._ended: set[_Handle] = set()
        self.look_around()
        if not self.starting:
            raise UserError(
                f"no machine of the Ray cluster has {settings.threads} processors; give fewer --threads"
            )

    def launch(self) -> _Handle:
        """Ask for an actor; Ray starts it where there is room, now or later."""
        handle = _Handle(self._actor.remote(self._settings, self._ticket))
        self._expect(handle, handle.actor.load.remote())
        return handle

    def send(self, worker: _Handle, task: Task) -> None:
        """Tell an actor to restore a photo."""
        self._expect(worker, worker.actor.run.remote(task))

    def end(self, worker: _Handle) -> None:
        """Kill an actor; what it still reports is not heard."""
        self._ended.add(worker)
        self._ray.kill(worker.actor)

    def events(self, seconds: float) -> list[tuple[_Handle, Event]]:
        """Return what actors report."""
        reports: list[tuple[_Handle, Event]] = []
        try:
            worker, future = self._events.get(timeout=seconds)
            while True:
                if worker in self._ended:
                    self._ended.remove(worker)
                else:
                    reports.append((worker, self._event(worker, future)))
                worker, future = self._events.get_nowait()
        except Empty:
            return reports

    def close(self) -> None:
        """Kill all actors, and end a cluster that this process has started."""
        self._ray.shutdown()
        self._silence.__exit__(None, None, None)

    def look_around(self) -> None:
        """Start actors on machines that have come."""
        if time.monotonic() - self._looked < _LOOK_EVERY:
            return
        self._looked = time.monotonic()
        wanted = self._workers
        if wanted is None:
            nodes = (node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"])
            wanted = sum(int(cores // self._settings.threads) for cores in nodes)
        for _ in range(len(self) + len(self.starting), wanted):
            self.add()

    def _expect(self, worker: _Handle, answer: Any) -> None:
        answer.future().add_done_callback(lambda future: self._events.put((worker, future)))

    def _event(self, worker: _Handle, future: Future[Any]) -> Event:
        from ray.exceptions import RayActorError, RayTaskError

        error = future.exception()
        if isinstance(error, RayTaskError):  # a bug, in code that runs on all machines
            raise error
        if error is not None:
            is_lost = isinstance(error, RayActorError) and self._is_lost(worker, str(error))
            return Death(" ".join(str(error).split())[:200], is_lost)
        answer = future.result()
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, str):
            worker.node = answer
            return Ready()
        outcome: Outcome = answer
        return outcome

    def _is_lost(self, worker: _Handle, reason: str) -> bool:
        """Return whether the machine of an actor is gone."""
        if _NODE_DIED in reason:
            return True
        return any(node["NodeID"] == worker.node and not node["Alive"] for node in self._ray.nodes())


def _connect(address: str | None) -> Any:
    """Return the module of Ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"the Ray cluster cannot be reached ({' '.join(str(error).split())})") from error
    return ray
