"""Write figures line by line, so that nothing measured is ever lost, and read them again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """Hold one thing that a stage found out.

    Attributes:
        name: What it is.
        value: A number, a word, or None where it could not be measured.
        unit: Of a number: "s", "GB/s", ...; empty for a word.
        facts: What else is known about it, as JSON has it.
    """

    name: str
    value: float | str | None
    unit: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class FigureLog:
    """Hold the lines of a file; each is on the disk before `write` returns.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, stage: str, key: str, **line: Any) -> None:
        """Append a line about a stage that runs under a key (`runner`)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("" if whole else "\n")  # a kill cut the last line
            file.write(json.dumps({"stage": stage, "key": key, **line}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines in order; one that a kill cut short is skipped."""
        if not self.path.exists():
            return
        for text in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(text)
            except json.JSONDecodeError:
                continue
