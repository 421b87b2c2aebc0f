"""Print tables and reports, and read sizes that users type."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from mirl_sparse.tickets.description import Report


def show(table: Table) -> None:
    """Print a table as wide as the terminal; into a pipe, without wrapping."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)


def print_report(report: Report) -> None:
    """Print what is left of each layer, and the sums."""
    from rich.table import Table

    table = Table("layer", "shape", "density", "MACs left", "of", "dead rows", "implementation", box=None)
    for x in report.layers:
        shape = "x".join(map(str, x.shape))
        table.add_row(x.name, shape, f"{x.density:.1%}", f"{x.macs / 1e6:.1f} M", f"{x.macs_dense / 1e6:.1f} M",
                      str(x.dead), x.implementation)  # fmt: skip
    show(table)
    s = report.statistics
    print(
        f"density {s['density']:.2%} of {s['weights_dense']:,} prunable weights, {s['parameters']:,} of all"
        f" {s['parameters_dense']:,} parameters not zero; MAC density {s['mac_density']:.2%} (convolutions at 256x256:"
        f" {s['macs_256'] / 1e9:.2f} of {s['macs_256_dense'] / 1e9:.2f} G)"
    )


def parse_bytes(size: str | None) -> int | None:
    """Return how many bytes a size means: "4G", "500M", "300k" (powers of 1000), "4GiB" (of 1024) or plain bytes."""
    if size is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", size.strip().lower())
    given = 0.0
    if match is not None:
        given = float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " ")
    if not 1 <= given < 2**63:
        raise UserError(f"--max-memory is {size!r}; expected a size such as 4G or 500M")
    return int(given)


def check_side(size: int) -> None:
    """Raise UserError unless the network can take images of this side."""
    from mirl_sparse.architectures.promptir.config import MULTIPLE

    if size % MULTIPLE:
        raise UserError(f"--size is {size}; expected a multiple of {MULTIPLE}")
