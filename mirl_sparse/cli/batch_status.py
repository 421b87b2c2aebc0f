"""Offer ``mirl-sparse batch-status``: sum up the report of a batch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mirl_sparse.cli.batch import parse_options
from mirl_sparse.cli.printing import printable, show

if TYPE_CHECKING:
    from mirl_sparse.batch.status import BatchStatus


def batch_status(
    target: Annotated[str, typer.Argument(help="The target of mirl-sparse batch.")],
    failed: Annotated[
        bool, typer.Option("--failed", help="Print the keys of photos without a result, one a line.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    storage_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for fsspec; may be given several times.")
    ] = None,
) -> None:
    """Sum up what mirl-sparse batch did: photos by status, speed by machine, errors; also while it runs."""
    from mirl_sparse.batch.status import read_status
    from mirl_sparse.batch.stores import Address, open_store

    status = read_status(open_store(Address(target, parse_options(storage_option or []))), failed)
    if as_json:
        print(json.dumps(asdict(status), indent=1))
    elif failed:
        for key in status.failed:
            print(printable(key))
    else:
        _print(status)


def _print(status: BatchStatus) -> None:
    from rich.table import Table
    from rich.text import Text

    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(status.counts.items()))
    print(f"{sum(status.counts.values()):,} photos: {counts}; {status.warnings:,} results with a warning")
    nodes = Table("machine", "photos", "photos per hour", box=None)
    for node in status.nodes:
        nodes.add_row(Text(printable(node.node)), f"{node.photos:,}", f"{node.per_hour:,.0f}")
    show(nodes)
    if status.errors:
        errors = Table("photos", "error", "such as", box=None)
        for kind in status.errors:
            examples = printable(", ".join(kind.examples))
            errors.add_row(f"{kind.count:,}", Text(printable(kind.error)), Text(examples))
        show(errors)
