"""Listen, answer, and stop in good order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mirl_sparse.errors import UserError
from mirl_sparse.service.allocator import give_back_memory
from mirl_sparse.service.application import make_app
from mirl_sparse.service.limits import Access, Limits
from mirl_sparse.service.service import Service
from mirl_sparse.service.work import thread_warnings

_LAST_ANSWERS_SECONDS = 5  # for the answers of what was broken off


def bind(host: str, port: int, limits: Limits) -> socket.socket:
    """Return a socket that will listen.

    Args:
        host: Name or address of this machine.
        port: 0 takes a free one.
        limits: Say how long a client may leave an answer unread.

    Raises:
        UserError: There is no such host, or the port cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # ends connections whose client reads nothing
            milliseconds = round(1000 * limits.transfer_seconds)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"{host}, port {port}: cannot be used ({error.strerror or error}); choose others"
        ) from None
    return listener


def run(
    service: Service,
    access: Access,
    listener: socket.socket,
    grace: float,
    on_start: Callable[[], object] = lambda: None,
) -> int:
    """Serve until SIGTERM or SIGINT, then finish what was accepted; a second signal breaks that off.

    Args:
        service: What restores photos.
        access: Who may use it.
        listener: A bound socket.
        grace: Seconds for what was accepted.
        on_start: Called when the first request can come, and a signal.

    Returns:
        0, or 1 if accepted photos had to be broken off.
    """
    config = uvicorn.Config(
        make_app(service, access),
        http=_protocol(service.limits.head_seconds),
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=service.limits.connections,
        timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
    )
    give_back_memory()
    with thread_warnings():
        asyncio.run(_serve(_Server(config), service, listener, grace, on_start))
    if broken_off := service.queue.broken_off:
        print(f"mirl-sparse: stopped before {broken_off} photos were restored", file=sys.stderr)
    if service.queue.running:  # PyTorch does not stop in the middle, and Python would wait for its threads
        sys.stderr.flush()
        os._exit(1)
    return int(broken_off > 0)


class _Server(uvicorn.Server):
    """Leaves signals to `_serve`; uvicorn would end by the signal, not with a status."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    server: _Server,
    service: Service,
    listener: socket.socket,
    grace: float,
    on_start: Callable[[], object],
) -> None:
    stops = asyncio.Event()

    def stop() -> None:
        if stops.is_set():
            service.queue.break_off()
        stops.set()

    async def stop_in_order() -> None:
        await stops.wait()
        await service.queue.close(grace)
        server.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    stopping = asyncio.ensure_future(stop_in_order())
    listener.listen()
    on_start()
    try:
        await server.serve([listener])
    finally:
        stopping.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _protocol(head_seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol, with a limit on the time until the head of a request is there."""

    class Protocol(H11Protocol):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Start the clock when a head is awaited, and stop it when that is there."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()
            elif self._limit is None:
                self._limit = self.loop.call_later(head_seconds, self.transport.abort)

        def _unwatch(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

    return Protocol
