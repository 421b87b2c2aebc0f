"""Offer ``mirl-sparse export``: a ticket as a model that other programs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirl_sparse.cli.options import named_after
from mirl_sparse.cli.printing import printable
from mirl_sparse.errors import UserError


def export(
    ticket: Annotated[str, typer.Argument(help="A ticket file, or the name of a shipped ticket.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX model.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The model, by default NAME.onnx.")
    ] = None,
) -> None:
    """Export a ticket to ONNX, for other programs; they run it as a dense network."""
    if not onnx:
        raise UserError("no format is named; expected --onnx (mirl-sparse compile writes programs)")
    from mirl_sparse.onnx_export import export_onnx

    target = output or named_after(ticket, ".onnx")
    size = export_onnx(ticket, target)
    print(
        f"wrote {printable(target)} ({size / 1e6:.1f} MB): images of any size; other programs run it as a"
        " dense network, without the speed of its zeros"
    )
