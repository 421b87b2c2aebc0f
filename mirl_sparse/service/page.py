"""Serve the page that restores photos, with the service as its engine.

The files are those of the offline page as they lie in the package; nothing needs to be built. The offline
page forbids all connections. This one may connect to where it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from mirl_sparse.web import PAGE

_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob: data:; script-src 'self'; style-src 'self';"
    " base-uri 'none'; form-action 'none'"
)
_POLICY_TAG = re.compile(r'(http-equiv="Content-Security-Policy" content=")[^"]*')
_ENGINE = re.compile(r'(<html [^>]*data-engine=")browser')
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
_OFFLINE_ONLY = ("data.js", "browser.js")  # they need WebAssembly


class _File(NamedTuple):
    content: bytes
    type: str


def page_files(folder: Path = PAGE) -> dict[str, Callable[[Request], Response]]:
    """Return what answers with the files of the page, by their paths.

    Args:
        folder: The page's files.
    """
    files = {
        f"/{path.name}": _File(path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(folder.iterdir())
        if path.suffix in _TYPES and path.name not in _OFFLINE_ONLY
    }
    index = served_index((folder / "index.html").read_text("utf-8"))
    files["/"] = _File(index.encode(), "text/html; charset=utf-8")
    return {path: _answer(file) for path, file in files.items()}


def served_index(text: str) -> str:
    """Return the page with the service as its engine, and the policy for that."""
    for pattern, replacement in ((_POLICY_TAG, _POLICY), (_ENGINE, "service")):
        text, count = pattern.subn(lambda match, new=replacement: match[1] + new, text)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"index.html has {count} places for {pattern.pattern}; expected one")
    return text


def _answer(file: _File) -> Callable[[Request], Response]:
    headers = {"Content-Security-Policy": f"{_POLICY}; frame-ancestors 'none'", "Cache-Control": "no-cache"}

    def answer(request: Request) -> Response:
        return Response(file.content, media_type=file.type, headers=headers)

    return answer
