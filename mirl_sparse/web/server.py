"""Serve the page on this machine, with the headers that give it threads."""

from __future__ import annotations

import os
import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mirl_sparse.errors import UserError

_HEADERS = {
    # Both make the page crossOriginIsolated, which threads of WebAssembly need.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Return a server of the folder on 127.0.0.1.

    Args:
        folder: The built page.
        port: 0 takes a free one.

    Raises:
        UserError: The page is not built, or the port is taken.
    """
    index = folder / "index.html"
    if not index.is_file():
        raise UserError(f"the page is not built: {folder} has no index.html; run `make web`")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', index.read_text("utf-8"))
    headers = {
        **_HEADERS,
        "Content-Security-Policy": f"{policy[1] if policy else ''}; frame-ancestors 'none'",
    }
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, headers, folder))
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used: {error.strerror}; leave out --port to take a free one"
        ) from error


class _Handler(SimpleHTTPRequestHandler):
    """Answers with files of the folder, and says nothing about each request."""

    # Of the machine's own table of types, some entries are wrong on some systems.
    extensions_map = {  # noqa: RUF012
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        "": "application/octet-stream",
    }

    def __init__(self, headers: dict[str, str], folder: Path, *args: object) -> None:
        self._headers = headers
        super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

    def end_headers(self) -> None:
        for name, value in self._headers.items():
            self.send_header(name, value)
        super().end_headers()

    def list_directory(self, path: str | os.PathLike[str]) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass
