"""Offer the service twice the load that it can do, and see what becomes of it.

    python -m benchmarks.service [--seconds 120] [-o benchmarks/results/service] [-- OPTIONS OF serve]

Start ``mirl-sparse serve`` in a process of its own, on this machine. Find out with clients that wait for
their answers how many photos per second it restores; then send twice as many, of mixed sizes, at random
times. It must accept what it can do, refuse the rest with status 429, answer all that it accepts, 99% of it
within three times the median, and not grow. The exit status is 1 if it does not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.service.load import MemoryWatch, closed_loop, make_photos, open_loop
from benchmarks.service.report import summarize, table, write
from benchmarks.service.running import running

_PHOTOS = 48
_OVERLOAD = 2.0
_CLIENTS = 3  # one photo is restored, one is sent, one is received
_RESULTS = Path(__file__).parents[1] / "results/service"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.service", description="Load the service with twice of what it can do."
    )
    parser.add_argument("--seconds", type=float, default=120, help="of the overload (default %(default)s)")
    parser.add_argument(
        "--capacity-seconds", type=float, default=30, help="to find what it can do (default %(default)s)"
    )
    parser.add_argument("-o", "--output", type=Path, default=_RESULTS, help="folder (default %(default)s)")
    parser.add_argument("options", nargs="*", help="options of mirl-sparse serve, behind --")
    options = parser.parse_args()
    photos = make_photos(_PHOTOS)
    with running(options.options) as service:
        closed_loop(service, photos, _CLIENTS, options.capacity_seconds / 4)  # the first ones are slower
        answers = closed_loop(service, photos, _CLIENTS, options.capacity_seconds)
        capacity = sum(answer.status == 200 for answer in answers) / options.capacity_seconds
        print(f"capacity: {capacity:.1f} photos/s", file=sys.stderr)
        before = service.resident_bytes()
        with MemoryWatch(service) as memory:
            answers = open_loop(service, photos, _OVERLOAD * capacity, options.seconds)
        after = service.resident_bytes()
    result = summarize(
        capacity, _OVERLOAD * capacity, options.seconds, answers, memory.samples, before, after
    )
    print(table(result))
    print(f"wrote {write(result, options.output)}", file=sys.stderr)
    for fault in (broken := result.broken_floors()):
        print(f"not as promised: {fault}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
