"""Print tables and reports, and read sizes that users type."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from mirl_sparse.conversion import NetworkReport
    from mirl_sparse.tickets.description import Report


def show(table: Table) -> None:
    """Print a table as wide as the terminal; into a pipe, without wrapping."""
    from rich.console import Console

    Console(width=None if sys.stdout and sys.stdout.isatty() else 200).print(table)


def printable(text: object) -> str:
    """Return a text, such as a path, with its control characters escaped: they would reach the terminal."""
    return re.sub(r"[\0-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], str(text))


def print_report(report: Report) -> None:
    """Print what is left of each layer, and the sums."""
    from rich.table import Table

    table = Table("layer", "shape", "density", "MACs left", "of", "dead rows", "implementation", box=None)
    for layer in report.layers:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            f"{layer.density:.1%}",
            f"{layer.macs / 1e6:.1f} M",
            f"{layer.macs_dense / 1e6:.1f} M",
            str(layer.dead_rows),
            layer.implementation,
        )
    show(table)
    s = report.statistics
    print(
        f"density {s['density']:.2%} of {s['weights_dense']:,} prunable weights, {s['parameters']:,} of all"
        f" {s['parameters_dense']:,} parameters not zero; MAC density {s['mac_density']:.2%}"
        f" (convolutions at 256x256: {s['macs_256'] / 1e9:.2f} of {s['macs_256_dense'] / 1e9:.2f} G)"
    )


def print_network_report(report: NetworkReport) -> None:
    """Print what became of each layer of a network of another architecture than PromptIR, and the sums."""
    from rich.table import Table

    table = Table("layer", "module", "density", "runs as", "sparse", "dense", "why", box=None)
    for layer in report.sparsity.layers:
        table.add_row(*layer.cells())
    show(table)
    s = report.statistics
    enlarges = "" if report.scale == 1 else f", enlarges {report.scale}x"
    print(
        f"{report.architecture}{enlarges}: density {s['density']:.2%} of {s['weights_dense']:,} weights,"
        f" {s['parameters']:,} of all {s['parameters_dense']:,} parameters not zero;"
        f" {report.sparsity.swapped} layers and blocks run sparse here,"
        f" largest difference {report.difference:.0e}"
    )


def parse_bytes(size: str | None, option: str = "--max-memory") -> int | None:
    """Return how many bytes a size means; None stays None.

    Args:
        size: Such as "4G", "500M", "3000k" (powers of 1000), "4GiB" (of 1024), or plain bytes.
        option: What the message calls it.

    Raises:
        UserError: This is no size, or less than a megabyte, or more than 2**63.
    """
    if size is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", size.strip().lower())
    bytes = 0.0
    if match is not None:
        bytes = float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " ")
    if not 1e6 <= bytes < 2**63:
        raise UserError(f"{option} is {size!r}; expected a size such as 4G or 500M, at least 1M")
    return int(bytes)
