"""Offer ``mirl-sparse convert``: a checkpoint becomes a ticket."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mirl_sparse.choices import Precision, Weights
from mirl_sparse.cli.printing import print_network_report, print_report, printable
from mirl_sparse.errors import UserError


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint (.ckpt, .pt, .pth, .safetensors) of a PromptIR or, with the extra spandrel, of"
            " any network that spandrel recognises."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The ticket, by default NAME.ticket.safetensors.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help=f"Which weights to read where there are several: {Weights.names()}.")
    ] = Weights.AUTO.value,
    tune_for: Annotated[
        float | None,
        typer.Option("--tune", help="Then find what is fastest on this GPU, for so many seconds.", min=0),
    ] = None,
) -> None:
    """Pack a pruned checkpoint into a ticket, verified against the dense network."""
    from mirl_sparse import conversion

    if weights not in list(Weights):
        raise UserError(f"--weights is {weights!r}; expected {Weights.names()}")
    if tune_for is not None:
        from mirl_sparse.runtime.gpu import check_gpu

        check_gpu()
    target = output or checkpoint.parent / f"{checkpoint.stem}.ticket.safetensors"
    report = conversion.convert(checkpoint, target, weights)
    written = f"wrote {printable(target)} ({target.stat().st_size / 1e6:.1f} MB)"
    if isinstance(report, conversion.NetworkReport):
        print_network_report(report)
        print(f"read {printable(checkpoint)}: {printable(report.source)}")
        print(written)
    else:
        print_report(report)
        print(f"read {printable(checkpoint)}: {printable(report.source)}")
        print(f"removed {report.removed:,} weights of dead channels; {written}")
    if tune_for is not None:
        from mirl_sparse.cli.tune import tune_ticket

        tune_ticket(target, 256, tune_for, Precision.FLOAT16)
