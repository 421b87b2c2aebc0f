"""Offer ``mirl-sparse compile``: a ticket becomes a program for the C++ runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirl_sparse.cli.options import named_after
from mirl_sparse.cli.printing import printable


def compile_command(
    ticket: Annotated[str, typer.Argument(help="A ticket file, or the name of a shipped ticket.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The program, by default NAME.mirl.")
    ] = None,
) -> None:
    """Compile a ticket to a program, which runs without Python: in C, in the browser."""
    from mirl_sparse.compilation import compile_ticket
    from mirl_sparse.program import SUFFIX

    target = output or named_after(ticket, SUFFIX)
    size = compile_ticket(ticket, target)
    print(f"wrote {printable(target)} ({size / 1e6:.1f} MB)")
