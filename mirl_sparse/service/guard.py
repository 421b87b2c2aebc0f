"""Keep other sites' pages away from the service, and tell browsers to be strict with its answers."""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mirl_sparse.service.limits import Access

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuse what pages of other sites ask for (ASGI middleware).

    A page can point a name of its own at this machine (DNS rebinding): the name of the request must be one of
    ours. And any page can send a form here without reading the answer: the page must be ours, or allowed.

    Args:
        app: The application.
        access: Who may use it.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        fault = ""
        if self._access.hosts is not None and _name(host) not in self._access.hosts:
            fault = "the service is not addressed by this name; start it with --allow-host to allow it"
        elif scope["method"] == "POST" and origin is not None and not self._may_ask(origin, host):
            fault = "the page is of another site; start the service with --allow-origin to allow it"
        if fault:
            answer = JSONResponse({"detail": fault}, HTTPStatus.FORBIDDEN)
            return await answer(scope, receive, send_strictly)
        await self._app(scope, receive, send_strictly)

    def _may_ask(self, origin: str, host: str) -> bool:
        return origin in self._access.origins or _netloc(origin) == host.lower()


def _name(host: str) -> str:
    """Return a host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower() or "none"
    except ValueError:
        return "none"
