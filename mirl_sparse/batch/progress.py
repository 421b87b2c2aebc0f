"""Show how far a run is: a bar in a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mirl_sparse.batch.report import Outcome, Status

_LINE_EVERY = 30.0  # seconds
_HOUR = 3600.0


@dataclass
class Tally:
    """Count what became of the photos of a run.

    Attributes:
        counts: Photos by status.
        up_to_date: Photos that earlier runs had done.
        failed_before: Photos that failed in earlier runs and are not tried again.
        listed: Photos to do, or None while the listing goes on.
        start: When photos began to be given out (`time.monotonic`).
    """

    counts: Counter[Status] = field(default_factory=Counter)
    up_to_date: int = 0
    failed_before: int = 0
    listed: int | None = None
    start: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        """Count a photo."""
        if outcome.is_old:
            self.up_to_date += 1
        else:
            self.counts[outcome.status] += 1

    @property
    def failures(self) -> int:
        """Photos that were tried in this run and have no result."""
        return self.counts[Status.FAILED] + self.counts[Status.UNREACHABLE]

    @property
    def per_hour(self) -> float:
        """Photos per hour since the start."""
        return self.counts.total() / max(time.monotonic() - self.start, 1e-3) * _HOUR

    def __str__(self) -> str:
        parts = [f"{self.counts[status]:,} {status}" for status in Status if self.counts[status]]
        if self.up_to_date:
            parts.append(f"{self.up_to_date:,} up to date")
        if self.failed_before:
            parts.append(f"{self.failed_before:,} failed before (--retry-failed)")
        return ", ".join(parts) or "nothing done"


class Progress:
    """Show a tally on standard error while a run lasts.

    Args:
        tally: It is read again and again.
        is_quiet: Whether nothing is shown.
    """

    def __init__(self, tally: Tally, is_quiet: bool) -> None:
        self._tally, self._is_quiet = tally, is_quiet
        self._shown = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if not self._is_quiet and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("photos", total=None, state="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, workers: int) -> None:
        """Show how far the run is.

        Args:
            workers: How many workers are ready.
        """
        tally = self._tally
        state = f"{tally}; {tally.per_hour:,.0f} photos per hour, {workers} workers"
        if self._bar:
            done = tally.counts.total()
            self._bar.update(self._task, completed=done, total=tally.listed, state=state)
        elif not self._is_quiet and time.monotonic() - self._shown >= _LINE_EVERY:
            self._shown = time.monotonic()
            of = "listing" if tally.listed is None else f"of {tally.listed:,}"
            say(f"{tally.counts.total():,} {of}: {state}")


def say(line: str) -> None:
    """Print a line on standard error; a closed one is no reason to end."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[state]}"))
    return Progress(*columns, console=Console(stderr=True), redirect_stdout=False, refresh_per_second=2)
