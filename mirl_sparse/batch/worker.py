"""Restore one photo after the other, as each worker does on any machine."""

from __future__ import annotations

import io
import os
import time
import warnings
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from mirl_sparse.batch.keys import Target, fault_of, target_of
from mirl_sparse.batch.report import Outcome, Status
from mirl_sparse.batch.stores import Address, Store, StoreError, open_store
from mirl_sparse.errors import UserError
from mirl_sparse.memory import available_memory
from mirl_sparse.photos import Manner, encode_photo, is_image, read_photo, restore_photo
from mirl_sparse.photos.photo import printable_path
from mirl_sparse.restoring import find_restorer


@dataclass(frozen=True)
class Task:
    """Ask for one photo.

    Attributes:
        key: The photo.
        etag: Its etag as it was listed; empty if that is to be asked.
        only_if_missing: Whether nothing is to be done where a result is there.
    """

    key: str
    etag: str = ""
    only_if_missing: bool = False


@dataclass(frozen=True)
class WorkerSettings:
    """Say what workers do with each photo.

    Attributes:
        source: Where photos are.
        target: Where results go.
        ticket: A ticket file, a program, or the name of a shipped ticket.
        backend: What runs it.
        manner: How photos are restored.
        suffix: Suffix of the format of all results; None for each photo's own.
        threads: Threads of one worker.
        max_memory: Limit of the memory of one worker in bytes; None for its share of what is left.
    """

    source: Address
    target: Address
    ticket: str
    backend: str
    manner: Manner
    suffix: str | None = None
    threads: int = 1
    max_memory: int | None = None

    def hashes(self, ticket: bytes) -> tuple[str, str]:
        """Return the hash of the ticket, and of all that a result depends on beside the photo.

        Args:
            ticket: The content of the ticket file.
        """
        digest = sha256(ticket).hexdigest()
        return digest, sha256(repr((digest, self.manner, self.suffix)).encode()).hexdigest()


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Worker:
    """Hold a ticket and do what it is asked.

    Args:
        settings: What to do.
        node: What the report calls this machine.
        neighbours: How many workers share this machine's memory, this one among them.

    Raises:
        UserError: The ticket or a store cannot be used.
        BackendError: The backend cannot run here.
    """

    def __init__(self, settings: WorkerSettings, node: str, neighbours: int) -> None:
        self._settings, self._node = settings, node
        self._source: Store = open_store(settings.source)
        self._target: Store = open_store(settings.target)
        memory, free = settings.max_memory, available_memory()
        if memory is None and free is not None:
            memory = free * 9 // 10 // neighbours
        self._restorer = find_restorer(settings.ticket, settings.backend, memory, settings.threads)[1]()

    def run(self, task: Task) -> Outcome:
        """Restore a photo and write it, whole or not at all; whatever happens is in what is returned."""
        start = time.perf_counter()
        target, etag, status, error, said = "", task.etag, Status.FAILED, "", ""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                warnings.filterwarnings("ignore", module=r"PIL\.")  # of large photos, and of odd ones
                if fault := fault_of(task.key):
                    raise UserError(f"{printable_path(task.key)}: {fault}")
                if task.only_if_missing and self._target.exists(self._target_of(task.key).key):
                    return Outcome(task.key, etag, Status.DONE, is_old=True)
                etag = etag or self._source.etag(task.key)
                target = self._restore(task.key)
            status = Status.DONE if target else Status.LEFT_OUT
            said = "; ".join(dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning))
        except StoreError as fault:
            status, error = Status.UNREACHABLE, str(fault)
        except FileNotFoundError:
            error = f"{printable_path(task.key)}: no such photo"
        except UserError as fault:
            error = str(fault)
        except MemoryError:
            error = f"{printable_path(task.key)}: not enough memory"
        except Exception as bug:  # a million other photos wait
            error = f"{printable_path(task.key)}: {type(bug).__name__}: {bug} (please report this bug)"
        seconds = time.perf_counter() - start
        return Outcome(task.key, etag, status, target, _line(error), _line(said), seconds, self._node)

    def _restore(self, key: str) -> str:
        """Write the result of a photo and return its key; nothing for a nameless file that is no image."""
        name, target = printable_path(key), self._target_of(key)
        if target.key != key and self._source.exists(target.key):
            raise UserError(
                f"{name}: would be written to {printable_path(target.key)}, where the result of the photo"
                " of that name goes; rename one"
            )
        data = self._source.read(key)
        if not Path(key).suffix and not is_image(io.BytesIO(data)):
            return ""
        photo = read_photo(io.BytesIO(data), name)
        photo = restore_photo(photo, name, self._restorer, self._settings.manner)
        self._target.write(target.key, encode_photo(photo, target.format, name))
        return target.key

    def _target_of(self, key: str) -> Target:
        return target_of(key, self._settings.suffix)


def _line(text: str) -> str:
    return " ".join(text.split())
