"""Keep the report: Parquet files in the target, one row for each photo that was tried."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mirl_sparse.batch.keys import REPORT, key_text
from mirl_sparse.batch.stores import Store
from mirl_sparse.choices import Choice
from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

_SUFFIX = ".parquet"
_MAX_ROWS = 1000
_MAX_SECONDS = 30.0
_MERGED_PARTS = 100
_THREADS = 16
_MAX_TRIES = 5


class Status(Choice):
    """Name what became of a photo.

    Attributes:
        DONE: Its result is in the target.
        FAILED: It cannot be restored; the next run tries it only with ``--retry-failed``.
        UNREACHABLE: The store did not give it or did not take its result; the next run tries it again.
        LEFT_OUT: Its name has no suffix, and it holds no image.
    """

    DONE = "done"
    FAILED = "failed"
    UNREACHABLE = "unreachable"
    LEFT_OUT = "left out"


@dataclass(frozen=True)
class Outcome:
    """Hold what became of one photo.

    Attributes:
        key: The photo.
        etag: Its etag as it was listed, or before it was read; empty if the store was not reached.
        status: What became of it.
        target: Key of the result; empty if there is none.
        error: Why there is none, in one line.
        warning: What is to be known of the result, in one line.
        seconds: How long it took, with reading and writing.
        node: Machine that did it.
        is_old: Whether the result was there already, so that nothing is to be reported.
    """

    key: str
    etag: str
    status: Status
    target: str = ""
    error: str = ""
    warning: str = ""
    seconds: float = 0.0
    node: str = ""
    is_old: bool = False


class ReportWriter:
    """Write outcomes to the target, in parts that appear whole.

    A part is written after 1,000 rows or 30 s. Each run writes its own, so that several may report at once.
    A hundred parts are merged into one, so that a long run leaves few.

    Args:
        store: The target.
        ticket: Hash of the ticket.
        settings: Hash of all that a result depends on beside the photo: `settings_hash`.
    """

    def __init__(self, store: Store, ticket: str, settings: str) -> None:
        self._store = store
        self._run = uuid.uuid4().hex[:12]
        self._same = {"ticket": ticket, "settings": settings, "run": self._run}
        self._rows: list[dict[str, Any]] = []
        self._since = time.monotonic()
        self._parts: list[tuple[str, pa.Table]] = []  # that are not merged, by their keys

    def add(self, outcome: Outcome) -> None:
        """Report a photo."""
        self._rows.append(
            {
                "key": key_text(outcome.key),
                "etag": outcome.etag,
                "target": key_text(outcome.target),
                "status": outcome.status.value,
                "error": key_text(outcome.error),
                "warning": key_text(outcome.warning),
                "seconds": outcome.seconds,
                "node": outcome.node,
                "finished": datetime.now(timezone.utc),
                **self._same,
            }
        )

    def write_due(self) -> None:
        """Write a part if there are enough rows, or the first has waited long enough."""
        if len(self._rows) >= _MAX_ROWS or time.monotonic() - self._since > _MAX_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write all rows that are not written."""
        import pyarrow as pa

        if self._rows:
            now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
            name = f"{REPORT}/{now}-{self._run}{_SUFFIX}"
            table = pa.Table.from_pylist(self._rows, _schema())
            self._write(name, table)
            self._parts.append((name, table))
            self._rows = []
        self._since = time.monotonic()
        if len(self._parts) == _MERGED_PARTS:
            self._merge()

    def close(self) -> None:
        """Write what is left, and merge the parts of this run."""
        self.flush()
        if len(self._parts) > 1:
            self._merge()

    def _merge(self) -> None:
        """Replace parts by one that takes the place of the last in their order; a kill leaves rows twice."""
        import pyarrow as pa

        names, tables = zip(*self._parts, strict=True)
        self._write(names[-1].removesuffix(_SUFFIX) + f"-merged{_SUFFIX}", pa.concat_tables(tables))
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self._store.remove, names))
        self._parts = []

    def _write(self, name: str, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        stream = io.BytesIO()
        pq.write_table(table, stream)
        self._store.write(name, stream.getvalue())


def _schema() -> pa.Schema:
    import pyarrow as pa

    fields = dict.fromkeys(
        ("key", "etag", "target", "status", "error", "warning", "node", "ticket", "settings", "run"),
        pa.string(),
    )
    return pa.schema({**fields, "seconds": pa.float32(), "finished": pa.timestamp("ms", "UTC")})


def read_part(store: Store, name: str, columns: Sequence[str]) -> pa.Table:
    """Return a part of the report.

    Args:
        store: The target.
        name: Key of the part.
        columns: Which columns.

    Raises:
        UserError: The file is damaged.
        FileNotFoundError: It was merged meanwhile.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(io.BytesIO(store.read(name))).read(list(columns))
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{store.place}{name}: is no part of a report ({reason}); remove it") from error


class Report:
    """Read the report of a target, a few parts at a time.

    Args:
        store: The target.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._names = sorted(name for name in store.names(REPORT) if name.endswith(_SUFFIX))

    def __bool__(self) -> bool:
        return bool(self._names)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield these columns of all parts, from the oldest to the newest; the last row of a key counts."""
        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(self._names), _THREADS):
                names = self._names[start : start + _THREADS]
                yield from pool.map(lambda name: read_part(self._store, name, columns), names)


def read_report(store: Store, read: Any) -> Any:
    """Return what a function makes of the report; call it again where a run merges parts meanwhile.

    Args:
        store: The target.
        read: Takes a `Report`.
    """
    for left in reversed(range(_MAX_TRIES)):
        try:
            return read(Report(store))
        except FileNotFoundError:
            if not left:
                raise
    raise AssertionError("the last try returns or raises")
