"""Remember which results are up to date, so that a folder that has grown is not done again."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

from mirl_sparse.photos.jobs import Job

NAME = ".mirl-sparse.jsonl"


class Records:
    """Keep a hidden file in each folder of results, one line for each.

    A result is up to date if it is newer than its photo and was made in the same way.

    Args:
        made_by: Tells apart ways to restore: the ticket, and the options.
    """

    def __init__(self, made_by: str) -> None:
        self._made_by = made_by
        self._folders: dict[Path, dict[str, str]] = {}  # by folder and name of the result: what made it

    def is_up_to_date(self, job: Job) -> bool:
        """Return whether the result of a job need not be made again."""
        if job.source is None or job.target is None:
            return False
        if self._in(job.target.parent).get(job.target.name) != self._made_by:
            return False
        try:
            return job.target.stat().st_mtime_ns >= job.source.stat().st_mtime_ns
        except OSError:
            return False

    def add(self, job: Job) -> None:
        """Remember that the result of a job has just been written; where that cannot be, it is done again."""
        if job.target is None:
            return
        self._in(job.target.parent)[job.target.name] = self._made_by
        line = json.dumps({"result": job.target.name, "made_by": self._made_by})
        with suppress(OSError), (job.target.parent / NAME).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def _in(self, folder: Path) -> dict[str, str]:
        if folder not in self._folders:
            self._folders[folder] = _read(folder / NAME)
        return self._folders[folder]


def _read(path: Path) -> dict[str, str]:
    """Return what made each result. Lines that a kill has cut short are ignored."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    made: dict[str, str] = {}
    for line in lines:
        with suppress(ValueError, TypeError, KeyError):
            row = json.loads(line)
            made[str(row["result"])] = sys.intern(str(row["made_by"]))
    return made
