"""Check the promises of docs/batch.md; see the package."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.batch.driver import driver_seconds
from benchmarks.batch.kills import KillTest, run_kill_test
from benchmarks.batch.listing import measure_listing
from benchmarks.batch.rates import FLOOR, compare_rates

_FIRST_SECONDS, _MOST_BYTES = 10.0, 1_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("check", choices=["kills", "rates", "driver", "listing"])
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--bad", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--sides", type=int, nargs=2, default=(64, 320), help="of photos, in pixels")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sides = (asked.sides[0], asked.sides[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.check == "kills":
            test = KillTest(asked.engine, asked.photos, asked.bad, asked.kills, sides, asked.seed)
            broken = run_kill_test(test, folder)
        elif asked.check == "rates":
            ratio = compare_rates(folder, asked.photos, sides)
            print(f"Ray on two raylets: {ratio:.2f} of two local workers")
            broken = [] if ratio >= FLOOR else [f"Ray is slower than {FLOOR} of the local engine"]
        elif asked.check == "driver":
            for engine, seconds in driver_seconds(folder, asked.photos).items():
                print(f"{engine}: the driver takes {seconds * 1e3:.2f} ms of a processor for each photo")
            broken = []
        else:
            broken = _listing(folder, asked.keys)
    print("\n".join(broken) or "every promise holds")
    sys.exit(bool(broken))


def _listing(folder: Path, keys: int) -> list[str]:
    figures = measure_listing(folder, keys)
    print(f"{keys:,} keys: first result after {figures.first_seconds:.1f} s")
    print(f"listed in {figures.list_seconds:.0f} s with {figures.list_bytes / 1e6:.0f} MB")
    print(f"found done in {figures.resume_seconds:.0f} s with {figures.resume_bytes / 1e6:.0f} MB")
    checks = {
        f"the first result takes more than {_FIRST_SECONDS:.0f} s": figures.first_seconds <= _FIRST_SECONDS,
        "the driver takes more than 1 GB": max(figures.list_bytes, figures.resume_bytes) <= _MOST_BYTES,
    }
    return [broken for broken, holds in checks.items() if not holds]


if __name__ == "__main__":
    main()
