"""Tell which sources show the same scene, so that none of a validation scene is trained on.

Two sources show the same scene if their clean photos are the same, byte for byte. Sets of haze hold one clean
photo many times, each under a name of its own and with other haze. The same scene in another file counts as
another scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mirl_training.data.folders import Source


class SceneFinder:
    """Compare the scenes of sources; the sizes of files are asked for once."""

    def __init__(self) -> None:
        self._sizes: dict[Path, int] = {}

    def last(self, sources: Sequence[Source], count: int) -> list[Source]:
        """Return one source of each of the last ``count`` scenes, in their order."""
        chosen: list[Source] = []
        for source in reversed(sources):
            if len(chosen) < count and not any(self._is_same(source.clean, other.clean) for other in chosen):
                chosen.insert(0, source)
        return chosen

    def without(self, sources: Sequence[Source], held_back: Iterable[Source]) -> list[Source]:
        """Return the sources that show no scene of those held back."""
        by_size: dict[int, list[Path]] = {}
        for _, clean in held_back:
            by_size.setdefault(self._size(clean), []).append(clean)
        return [
            source
            for source in sources
            if not any(
                self._is_same(source.clean, clean) for clean in by_size.get(self._size(source.clean), ())
            )
        ]

    def _size(self, path: Path) -> int:
        if path not in self._sizes:
            self._sizes[path] = path.stat().st_size
        return self._sizes[path]

    def _is_same(self, a: Path, b: Path) -> bool:
        return a == b or (self._size(a) == self._size(b) and a.read_bytes() == b.read_bytes())
