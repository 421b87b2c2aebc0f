"""Offer ``mirl-sparse inspect``: print what a checkpoint or a ticket holds."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mirl_sparse.cli.printing import print_network_report, print_report, show
from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    from mirl_sparse.architectures.promptir import PromptIR


def inspect(
    file: Annotated[str, typer.Argument(help="A ticket, a checkpoint, or the name of a shipped ticket.")],
    cost: Annotated[
        bool,
        typer.Option(
            "--cost", help="Predict how long it takes here; the first time, this machine is measured."
        ),
    ] = False,
    gpus: Annotated[
        bool,
        typer.Option(
            "--gpus", help="Predict how long it takes on GPUs, dense and sparse; needs triton, not a GPU."
        ),
    ] = False,
    size: Annotated[
        int,
        typer.Option(help="Side of the square image to predict for, a multiple of 8 or 16.", min=8),
    ] = 256,
) -> None:
    """Print what a checkpoint or ticket holds, layer by layer."""
    from mirl_sparse.architectures.image_network import ImageNetwork
    from mirl_sparse.tickets import describe, find_ticket, load_any_network

    network = load_any_network(find_ticket(file))
    if isinstance(network, ImageNetwork):
        if cost or gpus:
            raise UserError(
                f"{file}: --cost and --gpus need a PromptIR, this is {network.architecture}; leave them"
                " out, as the report has the predicted times of each layer"
            )
        from mirl_sparse.conversion import describe_network

        print_network_report(describe_network(network))
        return
    network.config.check_side(size)
    print_report(describe(network))
    if cost:
        _print_cost(network, size)
    if gpus:
        _print_gpus(network, size)


def _print_cost(network: PromptIR, size: int) -> None:
    import torch

    from mirl_sparse.performance.prices import cost_model

    seconds = cost_model().network(network, size, size)
    print(f"predicted for {size}x{size} on {torch.get_num_threads()} threads here: {seconds * 1e3:.0f} ms")


def _print_gpus(network: PromptIR, size: int) -> None:
    from rich.table import Table

    from mirl_sparse.performance.predict import DERATED, predict

    predictions = predict(
        network, (1, size, size), progress=lambda gpu: print(f"compiling for {gpu}", file=sys.stderr)
    )
    table = Table(
        "GPU, predicted",
        "dense eager",
        "dense compiled",
        "sparse",
        f"at {DERATED:.0%} of every peak",
        "speed-up",
        "moved, launches",
        "dense steps",
    )
    for row in predictions:
        ms = (f"{1e3 * s:.2f} ms" for s in (row.eager, row.compiled, row.sparse, row.sparse_derated))
        table.add_row(
            f"{row.gpu}*" if row.calibrated else row.gpu,
            *ms,
            f"{row.eager / row.sparse:.1f}x, {row.compiled / row.sparse:.1f}x over compiled",
            f"{row.sparse_bytes / 1e9:.2f} of {row.eager_bytes / 1e9:.2f} GB, {row.launches}",
            str(len(row.dense_steps)),
        )
    show(table)
    print(
        f"float16, {size}x{size}; moved to and from memory: sparse of dense eager. Predicted, not measured;"
        " dense is granted the peaks of the data sheets. Dense steps are those of the sparse network that"
        " dense operators would do faster, and do."
    )
    for row in predictions:
        if row.calibrated:
            print(f"* {row.gpu}: by fractions of the peaks that were measured ({row.calibrated})")
