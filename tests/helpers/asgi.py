"""Ask an ASGI application without a network: bodies come part by part, and clients leave when told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def detail(self) -> str:
        return json.loads(self.body)["detail"]


async def parts(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def ask(
    app: Callable,
    path: str,
    body: bytes | AsyncIterator[bytes] | None = None,
    headers: dict[str, str] | None = None,
    gone: asyncio.Event | None = None,
    answer: Answer | None = None,
    taking: asyncio.Event | None = None,
) -> Answer:
    """Return the answer to a GET, or to a POST if there is a body.

    Args:
        app: The application.
        path: With its query.
        body: The body, or its parts.
        headers: Beside Host.
        gone: When it is set, the client leaves.
        answer: Gets the answer, also if the application raises something.
        taking: Until it is set, the client takes no body; by default it takes all.
    """
    path, _, query = path.partition("?")
    fields = {"host": "localhost:8000"} | {name.lower(): value for name, value in (headers or {}).items()}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET" if body is None else "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
    }
    taken = taking or asyncio.Event()
    if taking is None:
        taken.set()
    left = body if isinstance(body, AsyncIterator) else parts(body or b"")
    is_sent, leaves, answer = False, gone or asyncio.Event(), answer or Answer()

    async def receive() -> dict:
        nonlocal is_sent
        leaving = asyncio.ensure_future(leaves.wait())
        if is_sent:
            await leaving
            return {"type": "http.disconnect"}
        coming = asyncio.ensure_future(anext(left, None))
        await asyncio.wait((coming, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            coming.cancel()
            return {"type": "http.disconnect"}
        leaving.cancel()
        is_sent = coming.result() is None
        return {"type": "http.request", "body": coming.result() or b"", "more_body": not is_sent}

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            await taken.wait()
            answer.body += message["body"]

    await app(scope, receive, send)
    return answer
