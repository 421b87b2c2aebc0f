"""Read the photo of a request, within limits that count while it comes in."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from mirl_sparse.service.held import Hold
from mirl_sparse.service.limits import Limits
from mirl_sparse.service.refusals import Refusal

# Python would print what the parser logs about broken forms.
logging.getLogger("python_multipart").addHandler(logging.NullHandler())

FIELD = "file"
_FORM = "multipart/form-data"
_FORM_OVERHEAD = 16_384  # bytes of a form beside its file


@dataclass(frozen=True)
class Body:
    """Hold what was sent.

    Attributes:
        data: The photo's file.
        name: Its name; empty if none was sent.
    """

    data: bytes
    name: str = ""


async def read_body(request: Request, limits: Limits, hold: Hold) -> Body:
    """Read the photo of a request: all of its body, or the one file of a form.

    Args:
        request: Its body was not read yet.
        limits: What it may take.
        hold: Counts the bytes.

    Raises:
        Refusal: The body is too large, comes too slowly, or is no form with one file; or there is no room.
        ClientDisconnect: The client has gone.
    """
    is_form = request.headers.get("content-type", "").lower().startswith(_FORM)
    largest = limits.photo_bytes + (_FORM_OVERHEAD if is_form else 0)
    parts = _parts(request, largest, hold)
    try:
        body = await asyncio.wait_for(
            _read_form(request, parts) if is_form else _read_all(parts), limits.transfer_seconds
        )
    except asyncio.TimeoutError:
        raise Refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the photo did not come within {limits.transfer_seconds:g} s",
            closes=True,
        ) from None
    if len(body.data) > limits.photo_bytes:
        raise _too_large(limits.photo_bytes)
    return body


async def _parts(request: Request, largest: int, hold: Hold) -> AsyncGenerator[bytes, None]:
    length = request.headers.get("content-length", "0")
    count = int(length) if length.isascii() and length.isdigit() else 0
    if count > largest:
        raise _too_large(largest)
    count = 0
    async for part in request.stream():
        count += len(part)
        if count > largest:
            raise _too_large(largest)
        hold.add(len(part))
        yield part


def _too_large(largest: int) -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the photo has more than {largest:,} bytes; make it smaller, or start the service with --max-bytes",
    )


async def _read_all(parts: AsyncGenerator[bytes, None]) -> Body:
    data = bytearray()
    async for part in parts:
        data += part
    return Body(bytes(data))


class _FormParser(MultiPartParser):
    """Parse a form without writing its file to the disk."""

    spool_max_size = sys.maxsize


async def _read_form(request: Request, parts: AsyncGenerator[bytes, None]) -> Body:
    parser = _FormParser(request.headers, parts, max_files=1, max_fields=0, max_part_size=0)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"the form cannot be read ({error.message}); expected one file {FIELD!r}, options in the address",
        ) from None
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise Refusal(HTTPStatus.BAD_REQUEST, f"the form has no file {FIELD!r}; send the photo as that")
        return Body(await file.read(), file.filename or "")
    finally:
        await form.close()
