"""Restore the photo of one request: read it, check it, let it wait, answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import PurePath, PureWindowsPath
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mirl_sparse.photos import (
    FORMATS,
    Header,
    ImageError,
    Manner,
    Restorer,
    TooManyPixelsError,
    UnknownFormatError,
    read_header,
)
from mirl_sparse.photos.jobs import BESIDE
from mirl_sparse.photos.photo import printable_path
from mirl_sparse.service.bodies import read_body
from mirl_sparse.service.held import HeldBytes, Hold
from mirl_sparse.service.limits import Limits
from mirl_sparse.service.metrics import Metrics
from mirl_sparse.service.queue import Queue
from mirl_sparse.service.refusals import Refusal
from mirl_sparse.service.work import Order, Result, UnrestoredError, UnwritableError, try_out

_UNNAMED = "photo"
_TYPES = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
}
_SUFFIXES = {format: suffix for suffix, format in reversed(FORMATS.items())}  # the usual one of each
_LONGEST_NAME = 200  # characters
_MEMORY_SECONDS = 5  # after which there may be memory again
_PART = 1 << 16  # bytes that are sent at a time
MEDIA_TYPES = tuple(_TYPES.values())
NOTE_HEADER = "X-Mirl-Sparse-Note"


class Service:
    """Hold what all requests share. It tries its restorers out, which takes a moment.

    Args:
        restorers: One for each worker; each is used by one thread at a time.
        limits: What requests may take.

    Attributes:
        limits: What requests may take.
        queue: Where photos wait.
        metrics: The figures.
    """

    def __init__(self, restorers: Sequence[Restorer], limits: Limits) -> None:
        self.limits = limits
        pixels = sum(map(try_out, restorers))
        start = time.monotonic()
        pixels = sum(map(try_out, restorers))
        self.queue = Queue(restorers, limits, pixels, time.monotonic() - start)
        self._held = HeldBytes(limits.held_bytes)
        self.metrics = Metrics(
            lambda: self.queue.waiting, lambda: self.queue.running, lambda: self._held.count
        )

    async def restore(self, request: Request, manner: Manner, format: str | None) -> Response:
        """Answer a request with its photo, restored.

        Args:
            request: Its body was not read yet.
            manner: How the photo is restored.
            format: One of the values of FORMATS; None for the photo's own.

        Raises:
            Refusal: With the status that says why.
            ClientDisconnect: The client has gone; the work is stopped.
        """
        self.queue.check()  # before anything is sent in vain
        hold = Hold(self._held)
        try:
            body = await read_body(request, self.limits, hold)
            name = _shown(body.name)
            header = await asyncio.to_thread(self._checked_header, body.data, name)
            order = Order(body.data, name, format or header.format, manner)
            result = await self._result(request, order, header.pixels)
        except BaseException:
            hold.release()
            raise
        self.metrics.count_photo(len(body.data), len(result.data), result.pixels)
        hold.exchange(len(result.data))
        return _PhotoResponse(result, order.format, name, hold, self.limits.transfer_seconds)

    def _checked_header(self, data: bytes, name: str) -> Header:
        """Return the header of a photo; refuse one that is none, or has too many pixels."""
        try:
            header = read_header(data, name)
        except ImageError as error:
            raise _refusal(error) from None
        if header.pixels > self.limits.photo_pixels:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"{name}: {header.width}x{header.height} are {header.pixels:,} pixels; expected at most"
                f" {self.limits.photo_pixels:,}, make it smaller, or start the service with --max-megapixels",
            )
        return header

    async def _result(self, request: Request, order: Order, pixels: int) -> Result:
        """Return the restored photo, unless the client goes before."""
        work = asyncio.ensure_future(self.queue.restore(order, pixels))
        gone = asyncio.ensure_future(_disconnect(request))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnect
            return work.result()
        except (ImageError, UnwritableError, UnrestoredError) as error:
            raise _refusal(error) from None
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    """Wait until the client goes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refusal(error: Exception) -> Refusal:
    """Return what says that a photo cannot be restored."""
    if isinstance(error, UnrestoredError):
        return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error), retry_after=_MEMORY_SECONDS)
    statuses: dict[type[Exception], HTTPStatus] = {
        UnknownFormatError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        TooManyPixelsError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        UnwritableError: HTTPStatus.UNPROCESSABLE_ENTITY,
    }
    return Refusal(statuses.get(type(error), HTTPStatus.BAD_REQUEST), str(error))


class _PhotoResponse(Response):
    """Send a restored photo part by part, to a client that takes it in time; then let go of its bytes."""

    def __init__(self, result: Result, format: str, name: str, hold: Hold, seconds: float) -> None:
        headers = {"Content-Disposition": _disposition(name, format)}
        if result.notes:
            notes = "; ".join(result.notes).encode("ascii", "backslashreplace")
            headers[NOTE_HEADER] = notes.decode()
        super().__init__(result.data, HTTPStatus.OK, headers, _TYPES[format])
        self._hold, self._seconds = hold, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # Where it takes too long, the answer stays incomplete, and so the server ends the connection.
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._send(send), self._seconds)
        finally:
            self._hold.release()

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        for at in range(0, len(self.body), _PART):
            part, more = self.body[at : at + _PART], at + _PART < len(self.body)
            await send({"type": "http.response.body", "body": part, "more_body": more})


def _shown(name: str) -> str:
    """Return the name of a file, however the client's system writes paths, in one printable line."""
    return printable_path(PureWindowsPath(name).name[-_LONGEST_NAME:]) or _UNNAMED


def _disposition(name: str, format: str) -> str:
    """Return the header that names the result, such as photo_restored.jpg."""
    path = PurePath(name)
    own = FORMATS.get(path.suffix.lower()) == format
    result = f"{path.stem}{BESIDE}{path.suffix if own else _SUFFIXES[format]}"
    plain = re.sub(r'[^ -~]|["\\%]', "_", result)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(result, safe='')}"
