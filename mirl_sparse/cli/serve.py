"""Offer ``mirl-sparse serve``: restore photos over HTTP."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated

import typer

from mirl_sparse.choices import BackendName
from mirl_sparse.cli.options import Backend, Ticket
from mirl_sparse.cli.printing import parse_bytes
from mirl_sparse.defaults import TICKET

if TYPE_CHECKING:
    from mirl_sparse.service import Access

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MEMORY_SHARE = 0.9  # of what is left, for all workers


def serve(
    host: Annotated[
        str, typer.Option(help="Name or address to serve at; 0.0.0.0 is for all machines of the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8000,
    ticket: Ticket = TICKET,
    backend: Backend = BackendName.AUTO.value,
    workers: Annotated[int, typer.Option(help="Photos that are restored at a time.", min=1)] = 1,
    threads: Annotated[
        int,
        typer.Option(help="Threads of each worker; 0 takes OMP_NUM_THREADS, or all processors.", min=0),
    ] = 0,
    max_memory: Annotated[
        str | None,
        typer.Option(help="Of all workers, such as 4G, by default what is left; beyond it, tiles are used."),
    ] = None,
    max_bytes: Annotated[str, typer.Option(help="Largest file of a photo.")] = "50M",
    max_megapixels: Annotated[float, typer.Option(help="Largest number of pixels, in millions.")] = 50,
    buffer: Annotated[str, typer.Option(help="Memory for the files of all photos and results.")] = "250M",
    queue: Annotated[int, typer.Option(help="Photos that may wait; beyond it, status 429.", min=1)] = 16,
    max_wait: Annotated[
        float, typer.Option(help="Seconds of work that may be ahead of a photo; beyond it, status 429.")
    ] = 10,
    timeout: Annotated[float, typer.Option(help="Seconds that a photo may wait and be worked on.")] = 120,
    transfer_timeout: Annotated[
        float, typer.Option(help="Seconds that a photo may take to come, and a result to go.")
    ] = 30,
    grace: Annotated[
        float, typer.Option(help="Seconds to finish accepted photos in, after SIGTERM or Ctrl+C.", min=0)
    ] = 30,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name by which the service may be addressed.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Another site whose pages may use it, such as https://photos.example."),
    ] = None,
) -> None:
    """Restore photos over HTTP, and serve a page for it, until SIGTERM or Ctrl+C."""
    import prometheus_client  # noqa: F401  # all that may be missing, before the ticket is loaded
    import python_multipart  # noqa: F401

    from mirl_sparse.memory import available_memory
    from mirl_sparse.restoring import find_restorer
    from mirl_sparse.service import Limits, Service, bind, run

    limits = Limits(
        photo_bytes=parse_bytes(max_bytes, "--max-bytes") or 0,
        photo_pixels=int(max_megapixels * 1e6),
        held_bytes=parse_bytes(buffer, "--buffer") or 0,
        waiting=queue,
        wait_seconds=max_wait,
        transfer_seconds=transfer_timeout,
        work_seconds=timeout,
    )
    memory = parse_bytes(max_memory)
    if memory is None and workers > 1 and (free := available_memory()):
        memory = int(free * _MEMORY_SHARE)
    _, load = find_restorer(ticket, backend, memory and memory // workers, threads)
    service = Service([load() for _ in range(workers)], limits)
    with bind(host, port, limits) as listener:
        address, bound = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        access = _access(host, address, allow_host or [], allow_origin or [])

        def announce() -> None:
            with suppress(BrokenPipeError):  # who waits for the address may not read on
                print(f"serving at http://{shown}:{bound}/; Ctrl+C stops", flush=True)

        status = run(service, access, listener, grace, announce)
    raise typer.Exit(status)


def _access(host: str, address: str, hosts: list[str], origins: list[str]) -> Access:
    """Return who may use the service: on this machine alone, by no names but its own."""
    from mirl_sparse.service import Access

    known = frozenset(name.lower() for name in (*_LOOPBACK, host, address, *hosts))
    is_private = ip_address(address).is_loopback or bool(hosts)
    return Access(known if is_private else None, frozenset(origins))
