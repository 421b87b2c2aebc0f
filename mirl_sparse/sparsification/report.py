"""Report how each layer of a sparsified network runs, and why."""

from __future__ import annotations

from dataclasses import dataclass

DENSE = "dense"
LAYER_BY_LAYER = "layer by layer"


@dataclass(frozen=True)
class SparsifiedLayer:
    """Say how one module runs now, and why.

    Attributes:
        name: Name of the module in the network; empty for the network itself.
        kind: Name of the module's class.
        nonzero: Number of weights that are not zero.
        total: Number of all weights; 0 for a block whose layers have rows of their own.
        implementation: Name of the sparse form, `DENSE`, or `LAYER_BY_LAYER` for a block that is not fused.
        reason: Why the module runs so.
        sparse_ms: Time of the sparse form in ms, of all calls for the example input: predicted on a CPU,
            measured on a GPU. None where nothing was compared.
        dense_ms: The same of the dense layer.
    """

    name: str
    kind: str
    nonzero: int
    total: int
    implementation: str
    reason: str
    sparse_ms: float | None = None
    dense_ms: float | None = None

    @property
    def density(self) -> float:
        """Return the nonzero weights over all weights, 0 to 1."""
        return self.nonzero / max(1, self.total)

    @property
    def swapped(self) -> bool:
        """Return whether a sparse form stands in the module's place."""
        return self.implementation not in (DENSE, LAYER_BY_LAYER)

    def cells(self) -> tuple[str, ...]:
        """Return the layer's row of the printed table."""
        times = ("" if t is None else f"{t:.2f} ms" for t in (self.sparse_ms, self.dense_ms))
        density = f"{self.density:.1%}" if self.total else ""
        return (self.name or "(root)", self.kind, density, self.implementation, *times, self.reason)


@dataclass(frozen=True)
class SparsityReport:
    """List every module that holds weights, and every block that is not fused, in the network's order.

    Attributes:
        layers: One entry for each of them. ``str(report)`` is a table of all.
        comparison: How the results were compared with the dense network's, and by how much they differ.
    """

    layers: tuple[SparsifiedLayer, ...]
    comparison: str = "each module by itself, on noise: no example input was given"

    @property
    def density(self) -> float:
        """Return the nonzero weights over all weights of the modules in the report, 0 to 1."""
        return sum(x.nonzero for x in self.layers) / max(1, sum(x.total for x in self.layers))

    @property
    def swapped(self) -> int:
        """Return how many layers and blocks run in a sparse form."""
        return sum(x.swapped for x in self.layers)

    def __str__(self) -> str:
        header = ("layer", "module", "density", "runs as", "sparse", "dense", "why")
        rows = [header, *(x.cells() for x in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        )
        modules = sum(x.total > 0 for x in self.layers)
        summary = f"{self.swapped} of {modules} swapped, density {self.density:.2%}"
        return "\n".join([*lines, summary, f"compared: {self.comparison}"])
