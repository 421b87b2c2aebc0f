"""Count what the service does, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/restore"
_GONE = 499  # the status of requests whose client did not wait for the answer
_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


class Metrics:
    """Hold the figures of one service.

    The only label is the status of answers, which is one of a few.

    Args:
        waiting: Returns how many photos wait.
        running: Returns how many photos are worked on.
        held: Returns how many bytes photos and results take.
    """

    def __init__(
        self, waiting: Callable[[], int], running: Callable[[], int], held: Callable[[], int]
    ) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        for name, text, function in (
            ("waiting_photos", "Photos that wait for a worker.", waiting),
            ("running_photos", "Photos that are worked on.", running),
            ("held_bytes", "Bytes of photos and results in memory.", held),
        ):
            Gauge(f"mirl_sparse_{name}", text, registry=registry).set_function(function)
        self._requests = Counter(
            "mirl_sparse_requests", f"Requests of {PATH}.", ("status",), registry=registry
        )
        self._seconds = Histogram(
            "mirl_sparse_request_seconds",
            "Seconds from the head of a request to the end of its answer, of restored photos.",
            buckets=_BUCKETS,
            registry=registry,
        )
        self._pixels = Counter("mirl_sparse_pixels", "Pixels restored.", registry=registry)
        self._received = Counter("mirl_sparse_received_bytes", "Bytes of photos.", registry=registry)
        self._sent = Counter("mirl_sparse_sent_bytes", "Bytes of results.", registry=registry)

    def count_photo(self, received: int, sent: int, pixels: int) -> None:
        """Count a restored photo: bytes of the photo, bytes of the result, and pixels."""
        self._received.inc(received)
        self._sent.inc(sent)
        self._pixels.inc(pixels)

    def count_request(self, status: int, seconds: float) -> None:
        """Count a request by its status; with its time, if a photo was restored."""
        self._requests.labels(str(status)).inc()
        if status == 200:
            self._seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all figures in the text format of Prometheus."""
        return generate_latest(self._registry)


class Counting:
    """Count the requests of an application (ASGI middleware).

    Args:
        app: The application.
        metrics: Gets the figures.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and count it."""
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        start, status, is_whole = time.perf_counter(), _GONE, False

        async def note(message: Message) -> None:
            nonlocal status, is_whole
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            is_whole = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self._app(scope, receive, note)
        finally:
            self._metrics.count_request(status if is_whole else _GONE, time.perf_counter() - start)
