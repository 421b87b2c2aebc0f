"""List a million keys of a store that speaks S3 and makes them up; measure the driver's time and memory."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from benchmarks.batch.processes import batch_command, files_below

_PAGE = 1000
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def _photo() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 120, 150)).save(stream, "PNG")
    return stream.getvalue()


def _page(start: int, keys: int) -> bytes:
    """Return a page of ListObjectsV2; keys lie in one folder, in their order."""
    stop = min(start + _PAGE, keys)
    entries = "".join(
        f'<Contents><Key>photos/{n:09}.png</Key><ETag>"{n:032x}"</ETag><Size>100</Size>'
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for n in range(start, stop)
    )
    more = f"<NextContinuationToken>{stop}</NextContinuationToken>" if stop < keys else ""
    is_truncated = str(stop < keys).lower()
    return (
        f'<?xml version="1.0"?><ListBucketResult xmlns="{_NAMESPACE}"><IsTruncated>{is_truncated}'
        f"</IsTruncated>{more}{entries}</ListBucketResult>"
    ).encode()


@contextmanager
def made_up_store(keys: int) -> Iterator[str]:
    """Yield the address of a server with a bucket of so many photos, all of them alike."""
    photo = _photo()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            is_list = "list-type" in asked
            start = int(asked.get("continuation-token", ["0"])[0])
            body = _page(start, keys) if is_list else photo
            self.send_response(200)
            self.send_header("Content-Type", "application/xml" if is_list else "image/png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass(frozen=True)
class ListingFigures:
    """Hold what was measured.

    Attributes:
        first_seconds: From the start of the command to the first result.
        list_seconds: Time to list all keys.
        list_bytes: Most memory of the driver meanwhile.
        resume_seconds: Time to find that all of them are done.
        resume_bytes: Most memory of the driver meanwhile.
    """

    first_seconds: float
    list_seconds: float
    list_bytes: int
    resume_seconds: float
    resume_bytes: int


def measure_listing(folder: Path, keys: int) -> ListingFigures:
    """Measure them with a store of so many keys."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
    with made_up_store(keys) as address:
        option = ["--storage-option", f"endpoint_url={address}"]
        first = _seconds_to_first(
            batch_command("s3://bucket/photos", folder / "out", *option), folder / "out"
        )
        dry = batch_command("s3://bucket/photos", folder / "none", *option, "--dry-run")
        listed = _run(dry)
        _write_report(folder / "done", keys)
        resumed = _run(batch_command("s3://bucket/photos", folder / "done", *option, "--dry-run"))
    return ListingFigures(first, *listed, *resumed)


def _seconds_to_first(command: list[str], target: Path) -> float:
    begin, running = time.monotonic(), subprocess.Popen(command)
    while not files_below(target):
        if running.poll() is not None:
            raise RuntimeError(f"the batch ended with status {running.returncode}")
        time.sleep(0.02)
    seconds = time.monotonic() - begin
    running.terminate()
    running.wait()
    return seconds


def _run(command: list[str]) -> tuple[float, int]:
    """Return how long a command takes, and the most memory that it has, without its children."""
    begin = time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(running.pid, 0)
    if status:
        raise RuntimeError(f"{command} ended with status {status}")
    return time.monotonic() - begin, usage.ru_maxrss * 1024


def _write_report(target: Path, keys: int) -> None:
    """Write the report of a batch that has done all photos of the made-up store with the shipped ticket."""
    code = """
import sys
from mirl_sparse.batch.report import Outcome, ReportWriter, Status
from mirl_sparse.batch.stores import Address, open_store
from mirl_sparse.batch.worker import WorkerSettings
from mirl_sparse.photos import Manner
from mirl_sparse.restoring import find_restorer
address = Address(sys.argv[1])
settings = WorkerSettings(address, address, "small", "auto", Manner())
writer = ReportWriter(open_store(address), *settings.hashes(find_restorer("small")[0].read_bytes()))
for n in range(int(sys.argv[2])):
    writer.add(Outcome(f"{n:09}.png", f"{n:032x}", Status.DONE, f"{n:09}.png", seconds=0.1, node="here"))
    writer.write_due()
writer.close()
"""
    subprocess.run([sys.executable, "-c", code, str(target), str(keys)], check=True)
