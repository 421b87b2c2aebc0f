"""Read which photos to restore from a list of keys, which may be longer than the memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO

from mirl_sparse.batch.keys import Item
from mirl_sparse.batch.stores import Address, open_stream
from mirl_sparse.errors import UserError
from mirl_sparse.photos.photo import reason

_KEY, _ETAG = "key", "etag"
_ROWS_AT_ONCE = 10_000


def read_manifest(manifest: Address, place: str) -> Iterator[Item]:
    """Yield the photos of a manifest, in its order.

    Args:
        manifest: A Parquet file (.parquet) or CSV (.csv) with a column ``key`` and perhaps ``etag``, or a
            text of one key in each line. A key may be the whole URL.
        place: The source's `Store.place`, which such URLs begin with.

    Raises:
        UserError: The manifest cannot be read, or has no column ``key``.
    """
    kind = PurePosixPath(manifest.url).suffix.lower()
    read = {".parquet": _rows_of_parquet, ".csv": _rows_of_csv}.get(kind, _rows_of_text)
    with open_stream(manifest) as stream:
        try:
            for key, etag in read(stream):
                yield Item(key.removeprefix(place), etag)
        except _NoKeys as error:
            raise UserError(f"{manifest}: {error}") from None
        except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors
            raise UserError(f"{manifest}: cannot be read ({reason(error)})") from error


class _NoKeys(Exception):
    """Report a table without the column of keys."""

    def __init__(self, columns: list[str]) -> None:
        super().__init__(f"has the columns {', '.join(columns)}; expected one named {_KEY}")


def _rows_of_text(stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    for line in stream:
        if key := line.decode("utf-8", "surrogateescape").rstrip("\r\n"):
            yield key, ""


def _rows_of_csv(stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
    rows = csv.DictReader(text, restval="")
    if _KEY not in (rows.fieldnames or ()):
        raise _NoKeys(list(rows.fieldnames or ["(none)"]))
    for row in rows:
        yield row[_KEY], row.get(_ETAG, "")


def _rows_of_parquet(stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(stream)
    names = file.schema_arrow.names
    if _KEY not in names:
        raise _NoKeys(names)
    columns = [name for name in (_KEY, _ETAG) if name in names]
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
        keys = batch.column(_KEY).to_pylist()
        etags = batch.column(_ETAG).to_pylist() if _ETAG in columns else [None] * len(keys)
        for key, etag in zip(keys, etags, strict=True):
            yield str(key), str(etag or "")
