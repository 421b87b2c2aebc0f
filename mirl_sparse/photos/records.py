"""Remember which results are up to date, so that a folder that has grown is not done again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from mirl_sparse.photos.jobs import Job

NAME = ".mirl-sparse.jsonl"
_Stamp = tuple[int, ...]  # size in bytes and time of the last change in ns


class _Record(NamedTuple):
    """Hold what a result was made by and of. Only its hash is kept in memory: there may be millions."""

    made_by: str
    photo: str | None
    photo_stamp: _Stamp | None
    result_stamp: _Stamp | None


class Records:
    """Keep a hidden file in each folder of results, one line for each.

    A result is up to date if it was made in the same way from the same photo, and neither file has changed
    since. The photo is known by its path, and both by their size and the time of their last change.

    Args:
        made_by: Tells apart ways to restore: the ticket, and the options.
        is_new: Whether a file is made where there is none yet; otherwise only existing ones are kept right.
    """

    def __init__(self, made_by: str, is_new: bool = True) -> None:
        self._made_by, self._is_new = made_by, is_new
        self._folders: dict[Path, dict[str, int]] = {}  # by folder and name of the result: hash of its record

    def is_up_to_date(self, job: Job) -> bool:
        """Return whether the result of a job need not be made again."""
        if job.target is None or job.target.name not in (records := self._in(job.target.parent)):
            return False
        record = self._record(job, _stamp(job.source))
        return None not in record and records[job.target.name] == hash(record)

    @contextmanager
    def recording(self, job: Job) -> Iterator[None]:
        """Remember the result that is written meanwhile, unless that fails.

        Where it cannot be remembered, it is made again.
        """
        before = _stamp(job.source)  # the photo may be changed while it is restored
        yield
        if job.target is None or not (self._is_new or (job.target.parent / NAME).exists()):
            return
        record = self._record(job, before)
        self._in(job.target.parent)[job.target.name] = hash(record)
        line = json.dumps({"result": job.target.name} | record._asdict())
        with suppress(OSError), (job.target.parent / NAME).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def _record(self, job: Job, photo_stamp: _Stamp | None) -> _Record:
        photo = None if job.source is None else os.path.abspath(job.source)
        return _Record(self._made_by, photo, photo_stamp, _stamp(job.target))

    def _in(self, folder: Path) -> dict[str, int]:
        if folder not in self._folders:
            self._folders[folder] = _read(folder / NAME)
        return self._folders[folder]


def _stamp(path: Path | None) -> _Stamp | None:
    """Return what changes when a file does; None for none."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _read(path: Path) -> dict[str, int]:
    """Return the hash of each result's last record. Lines that a kill has cut short are ignored."""
    records: dict[str, int] = {}
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                row = json.loads(line)
                stamps = tuple(row["photo_stamp"]), tuple(row["result_stamp"])
                records[str(row["result"])] = hash((row["made_by"], row["photo"], *stamps))
    return records
