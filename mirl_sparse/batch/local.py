"""Run workers as processes of this machine."""

from __future__ import annotations

import logging
import os
import platform
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from mirl_kernels.errors import BackendError
from mirl_sparse.batch.dispatch import Death, Event, Pool, Ready
from mirl_sparse.batch.worker import Task, Worker, WorkerSettings
from mirl_sparse.errors import UserError

_STOPPING = (signal.SIGINT, signal.SIGTERM)
# What ends the run with a message, rather than the worker alone.
_START_ERRORS = (UserError, BackendError, ModuleNotFoundError, MemoryError)


@dataclass(frozen=True, eq=False)
class _Process:
    process: BaseProcess
    pipe: Connection


class LocalPool(Pool[_Process]):
    """Hold processes that live as long as this one; they end by themselves when it is killed.

    Args:
        settings: What they do.
        workers: How many there are.
    """

    may_drain = True

    def __init__(self, settings: WorkerSettings, workers: int) -> None:
        super().__init__()
        self._settings, self._workers = settings, workers
        for _ in range(workers):
            self.add()

    def launch(self) -> _Process:
        """Start a process."""
        context = get_context("spawn")  # a fork would share the threads of libraries, half of them
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._settings, self._workers), daemon=True)
        with _signals_wait():
            process.start()
        theirs.close()  # so that the pipe ends with the process
        return _Process(process, pipe)

    def send(self, worker: _Process, task: Task) -> None:
        """Tell a process to restore a photo."""
        try:
            worker.pipe.send(task)
        except OSError:  # it died since; the pipe says so
            return

    def end(self, worker: _Process) -> None:
        """Kill a process."""
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()

    def events(self, seconds: float) -> list[tuple[_Process, Event]]:
        """Return what processes report."""
        pipes = {w.pipe: w for w in (*self.idle, *self.busy, *self.starting)}
        ready = connection.wait(list(pipes), seconds)
        return [(pipes[pipe], self._receive(pipes[pipe])) for pipe in ready if isinstance(pipe, Connection)]

    def close(self) -> None:
        """Kill all processes."""
        for worker in (*self.idle, *self.busy, *self.starting):
            worker.process.kill()
        for worker in (*self.idle, *self.busy, *self.starting):
            worker.process.join()

    def _receive(self, worker: _Process) -> Event:
        try:
            event: Event | Exception = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(timeout=5)  # the pipe may end just before the process
            return Death(_ending(worker.process.exitcode))
        if isinstance(event, Exception):
            raise event
        return event


def _ending(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "SIGKILL, perhaps for its memory"
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}"


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold back signals that stop a run; a process that is started meanwhile never sees them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, settings: WorkerSettings, neighbours: int) -> None:
    """Restore what the pipe asks for until it ends."""
    for number in _STOPPING:  # they go to the whole group; the driver decides
        signal.signal(number, signal.SIG_IGN)
    logging.disable()  # what readers of files log about damaged ones is in the report
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    try:
        worker = Worker(settings, platform.node(), neighbours)
    except _START_ERRORS as error:
        pipe.send(error)
        return
    try:
        pipe.send(Ready())
        while True:
            pipe.send(worker.run(pipe.recv()))
    except (EOFError, OSError):  # the driver is gone
        return
