"""List the keys of object stores page by page: fsspec's own functions return whole lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mirl_sparse.batch.keys import Item

_Patiently = Callable[[Callable[[], Any], str], Any]
_Entries = Callable[[Any, str, _Patiently], Iterator[Item]]
_CHANGES = ("ETag", "etag", "md5Hash", "generation", "checksum", "content_md5")
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "created")


def find_entries(fs: Any, root: str, patiently: _Patiently) -> Iterator[Item]:
    """Yield all files below a path, with keys relative to it, hidden ones too.

    S3 and Google Cloud Storage are asked for pages of 1,000 keys in their order. Other stores are listed
    folder by folder, so that the memory grows with the largest folder.

    Args:
        fs: A file system of fsspec.
        root: Path in it, without a slash at its end.
        patiently: Calls a function, again if the store fails; its second argument is a name for messages.
    """
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    entries = next((_PAGED[p] for p in protocols if p in _PAGED), _by_folder)
    return entries(fs, root, patiently)


def etag_of(info: dict[str, Any]) -> str:
    """Return what changes when a file does, of what fsspec says of it: an etag, or its size and time."""
    for name in _CHANGES:
        if info.get(name):
            return str(info[name]).strip('"')
    time = next((info[name] for name in _TIMES if info.get(name)), "")
    return f"{info.get('size', '')}-{time}"


def _in_s3(fs: Any, root: str, patiently: _Patiently) -> Iterator[Item]:
    bucket, _, prefix = root.partition("/")
    prefix, more = f"{prefix}/" if prefix else "", dict[str, str]()
    while True:
        asked = {"Bucket": bucket, "Prefix": prefix, **more}
        page = patiently(partial(fs.call_s3, "list_objects_v2", **asked), root)
        for entry in page.get("Contents", ()):
            yield Item(entry["Key"][len(prefix) :], entry["ETag"].strip('"'))
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _in_google(fs: Any, root: str, patiently: _Patiently) -> Iterator[Item]:
    bucket, _, prefix = root.partition("/")
    prefix, more = f"{prefix}/" if prefix else "", dict[str, str]()
    while True:
        asked = {"prefix": prefix, "maxResults": 1000, "json_out": True, **more}
        page = patiently(partial(fs.call, "GET", "b/{}/o", bucket, **asked), root)
        for entry in page.get("items", ()):
            yield Item(entry["name"][len(prefix) :], etag_of(entry))
        if not page.get("nextPageToken"):
            return
        more = {"pageToken": page["nextPageToken"]}


def _by_folder(fs: Any, root: str, patiently: _Patiently) -> Iterator[Item]:
    waiting = [root]
    while waiting:
        here = waiting.pop()
        try:
            entries = patiently(partial(fs.ls, here, detail=True), here)
        except FileNotFoundError:  # removed since, or never there
            continue
        folders = []
        for entry in sorted(entries, key=lambda entry: str(entry["name"])):
            name = str(entry["name"]).rstrip("/")
            if entry["type"] == "directory":
                folders.append(name)
            elif name != here:  # S3 and alike: a folder may be an empty file of that name
                yield Item(name[len(root) + 1 :], etag_of(entry))
        waiting += reversed(folders)


_PAGED: dict[str, _Entries] = {"s3": _in_s3, "s3a": _in_s3, "gs": _in_google, "gcs": _in_google}
