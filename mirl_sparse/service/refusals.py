"""Define how a request is refused."""

from __future__ import annotations

from http import HTTPStatus
from math import ceil

from starlette.exceptions import HTTPException


class Refusal(HTTPException):
    """Refuse a request.

    Args:
        status: The status of the answer.
        detail: Why, in one line: what was given, what was expected, what to do.
        retry_after: Seconds after which it may be tried again; None says nothing of it.
        closes: Whether the connection ends with the answer.
    """

    def __init__(
        self, status: HTTPStatus, detail: str, retry_after: float | None = None, closes: bool = False
    ) -> None:
        headers = {"Connection": "close"} if closes else {}
        if retry_after is not None:
            headers["Retry-After"] = str(max(1, ceil(retry_after)))
        super().__init__(status, detail, headers)
