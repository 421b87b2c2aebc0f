"""Offer ``mirl-sparse tune``: find the fastest kernels of a ticket on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirl_sparse.choices import Precision
from mirl_sparse.errors import UserError


def tune(
    ticket: Annotated[str, typer.Argument(help="A ticket, or the name of a shipped one.")],
    size: Annotated[
        int, typer.Option(help="Side of the square image to tune for, a multiple of 8 or 16.", min=8)
    ] = 256,
    seconds: Annotated[float, typer.Option(help="Seconds to spend on trying tiles.", min=0)] = 300,
    precision: Annotated[str, typer.Option(help=f"One of {Precision.names()}.")] = Precision.FLOAT16.value,
) -> None:
    """Find the fastest tiles of each kernel on this GPU, and store them beside the ticket (optional)."""
    if precision not in list(Precision):
        raise UserError(f"--precision is {precision!r}; expected {Precision.names()}")
    from mirl_sparse.tickets import find_ticket

    tune_ticket(find_ticket(ticket), size, seconds, precision)


def tune_ticket(ticket: Path, side: int, seconds: float, precision: str) -> None:
    """Tune a ticket file for images of side x side pixels, and print the result."""
    from mirl_sparse.performance.tune import tune as search
    from mirl_sparse.runtime.tuning import tuning_path

    tuning = search(ticket, side, seconds, precision)
    print(
        f"for {side}x{side} pixels in {precision}: {len(tuning.tiles)} kernels were timed in each of their"
        f" tiles, {len(tuning.dense)} steps are left to dense operators; wrote {tuning_path(ticket)}"
    )
