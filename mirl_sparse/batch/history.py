"""Know what earlier runs did, in 17 bytes for each photo."""

from __future__ import annotations

from enum import Enum

import numpy as np
from numpy.typing import NDArray

from mirl_sparse.batch.keys import Item, Shard, key_number, number_of
from mirl_sparse.batch.report import Report, Status, read_report
from mirl_sparse.batch.stores import Store

_COLUMNS = ("key", "etag", "status", "settings")
_RETRIED = frozenset((Status.UNREACHABLE.value,))


class Past(Enum):
    """Name what an earlier run made of a photo."""

    NOTHING = 0
    FINISHED = 1
    FAILED = 2


def last_rows(keys: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return where each key stands last, in the order of the keys.

    Examples:
        >>> last_rows(np.array([7, 3, 7], np.uint64)).tolist()
        [1, 2]
    """
    first = np.unique(keys[::-1], return_index=True)[1]
    return len(keys) - 1 - first


class History:
    """Tell which photos earlier runs finished in the same way.

    Keys and etags are remembered as hashes of 64 bits.

    Args:
        store: The target, which holds the report.
        settings: Hash of the settings of this run; what was made by others counts as not done.
        shard: Photos of other shards are not remembered.
    """

    def __init__(self, store: Store, settings: str, shard: Shard) -> None:
        self._keys, self._etags, self._is_failed = read_report(
            store, lambda report: _read(report, settings, shard)
        )

    def __len__(self) -> int:
        return len(self._keys)

    def of(self, item: Item) -> Past:
        """Return what became of a photo; with another etag it is a new one, with none the key is enough."""
        number = np.uint64(key_number(item.key))
        at = int(np.searchsorted(self._keys, number))
        if at == len(self._keys) or self._keys[at] != number:
            return Past.NOTHING
        if item.etag and self._etags[at] != number_of(item.etag):
            return Past.NOTHING
        return Past.FAILED if self._is_failed[at] else Past.FINISHED


def _read(report: Report, settings: str, shard: Shard) -> tuple[NDArray[np.uint64], ...]:
    """Return hashes of keys, sorted; of their etags; and whether they failed."""
    parts: list[tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint8]]] = []
    for table in report.tables(_COLUMNS):
        keys, etags, statuses, made_by = (table.column(name).to_pylist() for name in _COLUMNS)
        numbers = np.array([key_number(key) for key in keys], np.uint64)
        stamps = np.array([number_of(etag) for etag in etags], np.uint64)
        past = [
            Past.NOTHING
            if settings != s or status in _RETRIED
            else Past.FAILED
            if status == Status.FAILED
            else Past.FINISHED
            for status, s in zip(statuses, made_by, strict=True)
        ]
        is_own = numbers % np.uint64(shard.count) == shard.number - 1
        values = np.array([p.value for p in past], np.uint8)
        parts.append((numbers[is_own], stamps[is_own], values[is_own]))
    if not parts:
        return np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.uint8)
    keys, stamps, values = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    rows = last_rows(keys)
    rows = rows[values[rows] != Past.NOTHING.value]
    return keys[rows], stamps[rows], values[rows] == Past.FAILED.value
