"""Kill drivers, workers and raylets at random moments, and compare what is left with an undisturbed run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.batch.clusters import Raylets, raylets
from benchmarks.batch.photos import make_photos
from benchmarks.batch.processes import (
    batch_command,
    children,
    draw_kills,
    files_below,
    kill_one,
    processes,
    run_with_kills,
)

_STATUS = [sys.executable, "-c", "from mirl_sparse.cli.app import main; main()", "batch-status"]


@dataclass(frozen=True)
class KillTest:
    """Say what is run and killed.

    Attributes:
        engine: local or ray.
        photos: How many photos, bad ones among them.
        bad: How many cannot be restored.
        kills: How many kills.
        sides: Shortest and longest side in pixels.
        seed: Of photos and moments.
    """

    engine: str = "local"
    photos: int = 1000
    bad: int = 20
    kills: int = 10
    sides: tuple[int, int] = (64, 320)
    seed: int = 0


def run_kill_test(test: KillTest, folder: Path) -> list[str]:
    """Run it in an empty folder and return which promises are broken, one line each."""
    bad = make_photos(folder / "in", test.photos, test.bad, test.sides, test.seed)
    subprocess.run(batch_command(folder / "in", folder / "clean", "--workers", 2), check=False)
    victims = ["driver", "worker"] if test.engine == "local" else ["worker", "raylet", "driver"]
    kills = draw_kills(victims, test.kills, test.photos - test.bad, test.seed)
    begin = time.monotonic()
    with ExitStack() as stack:
        command = batch_command(folder / "in", folder / "out")
        cluster = None
        if test.engine == "ray":
            cluster = stack.enter_context(raylets(2))
            command += ["--engine", "ray", "--ray-address", cluster.address]
        else:
            command += ["--workers", "2"]
        rng = np.random.default_rng(test.seed)
        status = run_with_kills(
            command, folder / "out", kills, lambda victim, pid: _strike(victim, pid, cluster, rng)
        )
        # What was killed twice by chance has failed; bad photos fail again.
        last = subprocess.run([*command, "--retry-failed"], check=False).returncode
    print(
        f"{test.photos} photos, {test.kills} kills, {time.monotonic() - begin:.0f} s;"
        f" exit status {status}, then {last}"
    )
    return _broken_promises(folder, bad, last)


def _strike(victim: str, driver: int, cluster: Raylets | None, rng: np.random.Generator) -> None:
    if victim == "raylet":
        assert cluster is not None
        cluster.kill_one()
    elif cluster is None:
        kill_one(children(driver, [b"spawn_main"]), rng)
    else:
        kill_one(processes(b"ray::Actor"), rng)


def _broken_promises(folder: Path, bad: list[str], status: int) -> list[str]:
    clean, out = files_below(folder / "clean"), files_below(folder / "out")
    done = subprocess.run([*_STATUS, folder / "out", "--failed", "--json"], capture_output=True, text=True)
    report = json.loads(done.stdout)
    print(f"report: {report['counts']}; " + "; ".join(f"{e['count']} {e['error']}" for e in report["errors"]))
    photos = {p.relative_to(folder / "in").as_posix() for p in (folder / "in").rglob("*") if p.is_file()}
    differing = [
        n for n in clean & out if (folder / "clean" / n).read_bytes() != (folder / "out" / n).read_bytes()
    ]
    checks = {
        f"results are missing: {sorted(clean - out)[:5]}": clean <= out,
        f"files are no results: {sorted(out - clean)[:5]}": out <= clean,
        f"results differ from an undisturbed run: {differing[:5]}": not differing,
        f"{len(clean)} results of {len(photos) - len(bad)} good photos": len(clean) == len(photos) - len(bad),
        f"bad photos and those named differ: {sorted(set(bad) ^ set(report['failed']))[:5]}": sorted(bad)
        == sorted(report["failed"]),
        f"the report does not count every good photo once: {report['counts']}": report["counts"].get("done")
        == len(photos) - len(bad),
        f"exit status {status}, expected {int(bool(bad))}": status == int(bool(bad)),
    }
    return [broken for broken, holds in checks.items() if not holds]
