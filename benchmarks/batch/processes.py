"""Start mirl-sparse batch, find its workers, and kill them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PATIENCE = 300.0  # seconds without a new result, until a run is taken for hung
_CODE = "from mirl_sparse.cli.app import main; main()"


def batch_command(source: object, target: object, *more: object) -> list[str]:
    """Return the command of a batch, in one process that can be killed as such."""
    return [sys.executable, "-c", _CODE, "batch", str(source), str(target), "--quiet", *map(str, more)]


def children(parent: int, marks: Sequence[bytes]) -> list[int]:
    """Return the processes below another one whose command line has one of these marks."""
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        with suppress(OSError, ValueError):
            parents[int(entry.name)] = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
    below, last = {parent}, 0
    while len(below) > last:
        last = len(below)
        below |= {pid for pid, above in parents.items() if above in below}
    return sorted(pid for pid in below - {parent} if any(mark in _command(pid) for mark in marks))


def processes(mark: bytes) -> list[int]:
    """Return all processes whose command line has a mark."""
    pids = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return sorted(pid for pid in pids if mark in _command(pid))


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def files_below(folder: Path) -> set[str]:
    """Return the results in a target, without its report."""
    paths = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())
    return {path for path in paths if not path.startswith("_mirl/")}


@dataclass(frozen=True)
class Kill:
    """Say what is killed when so many results are there.

    Attributes:
        results: Number of results.
        victim: The name of a function of `KillRun.victims`.
    """

    results: int
    victim: str


def draw_kills(victims: Sequence[str], kills: int, photos: int, seed: int) -> list[Kill]:
    """Return kills at random moments, each kind of victim in turn."""
    rng = np.random.default_rng(seed)
    moments = sorted(rng.choice(np.arange(1, photos * 9 // 10), kills, replace=False).tolist())
    return [Kill(moment, victims[i % len(victims)]) for i, moment in enumerate(moments)]


def run_with_kills(
    command: list[str], target: Path, kills: Sequence[Kill], strike: Callable[[str, int], None]
) -> int:
    """Run a batch to its end, starting it again whenever it was killed; return its last exit status.

    Args:
        command: The batch.
        target: Its target.
        kills: What is killed, by the number of results.
        strike: Kills a victim by its name and the driver's process; the driver is killed here.
    """
    waiting, running = list(kills), subprocess.Popen(command)
    changed, seen = time.monotonic(), -1
    while (status := running.poll()) is None or status < 0:
        if status is not None:
            running = subprocess.Popen(command)
        results = len(files_below(target))
        if results != seen:
            changed, seen = time.monotonic(), results
        elif time.monotonic() - changed > _PATIENCE:
            running.kill()
            raise TimeoutError(f"no new result after {results} for {_PATIENCE:.0f} s")
        if waiting and results >= waiting[0].results:
            kill = waiting.pop(0)
            print(f"  killing a {kill.victim} at {results} results", flush=True)
            if kill.victim == "driver":
                running.kill()
                running.wait()
            else:
                strike(kill.victim, running.pid)
        time.sleep(0.02)
    if waiting:
        raise RuntimeError(f"the batch ended before {len(waiting)} of {len(kills)} kills")
    return status


def kill_one(pids: Sequence[int], rng: np.random.Generator) -> None:
    """Kill one of some processes, if there is one."""
    if pids:
        with suppress(ProcessLookupError):
            os.kill(int(rng.choice(pids)), signal.SIGKILL)
