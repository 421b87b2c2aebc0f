"""How much memory is left, on the machine, in its container, on a GPU."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

# A container's limit and what it uses (control groups, version 2 and 1); of the latter, what files of its disk take can be had back.
_CONTAINERS = [
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file"),
]  # fmt: skip


def available_memory() -> int | None:
    """Bytes of memory that could be used now, where the system says so: the machine's, or what a container leaves of it."""

    def values(path: str) -> dict[str, int]:
        lines = (line.split() for line in Path(path).read_text().splitlines())
        return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}

    found = []
    with suppress(OSError, ValueError, KeyError):
        found.append(1024 * values("/proc/meminfo")["MemAvailable"])
    for limit, used, statistics, files in _CONTAINERS:
        with suppress(OSError, ValueError, KeyError):  # no such limit: the file says "max", or is not there
            free = int(Path(limit).read_text()) - int(Path(used).read_text())
            found.append(max(0, free + values(statistics)[files]))
    return min(found, default=None)


def available_on(device: torch.device) -> int | None:
    """Bytes that could be used now on a device, those included that PyTorch has reserved there and does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return available_memory() if device.type == "cpu" else None
