"""Ask how much memory is free: on the machine, and in its container."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class _ControlGroup(NamedTuple):
    """Name the files in which Linux tells the memory of a container, and the name of a count in the last one.

    The count is of memory that cached files take, which is freed when it is needed.
    """

    limit: str
    usage: str
    statistics: str
    cached_files: str


_V1 = "/sys/fs/cgroup/memory"
_V2 = "/sys/fs/cgroup"
_CONTROL_GROUPS = [
    _ControlGroup(f"{_V2}/memory.max", f"{_V2}/memory.current", f"{_V2}/memory.stat", "inactive_file"),
    _ControlGroup(
        f"{_V1}/memory.limit_in_bytes",
        f"{_V1}/memory.usage_in_bytes",
        f"{_V1}/memory.stat",
        "total_inactive_file",
    ),
]


def _counts(path: str) -> dict[str, int]:
    """Return the numbers of a file whose lines are ``name number`` or ``name: number unit``."""
    lines = (line.split() for line in Path(path).read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}


def available_memory() -> int | None:
    """Return how much memory can be used now, in bytes, or None if the system does not tell.

    It is what the machine has free, or what the limit of the container leaves, if that is less.
    """
    free = []
    with suppress(OSError, ValueError, KeyError):  # not Linux
        free.append(1024 * _counts("/proc/meminfo")["MemAvailable"])
    for group in _CONTROL_GROUPS:
        with suppress(OSError, ValueError, KeyError):  # no limit: the file says "max", or is not there
            unused = int(Path(group.limit).read_text()) - int(Path(group.usage).read_text())
            free.append(max(0, unused + _counts(group.statistics)[group.cached_files]))
    return min(free, default=None)
