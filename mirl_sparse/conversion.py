"""From a masked checkpoint to a ticket: dead channels out, statistics in, verified before it is written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.tickets.description import Report, describe
from mirl_sparse.tickets.file import pack, remove_dead_channels, unpack, write_ticket
from mirl_sparse.tickets.load import load

TOLERANCE = 1e-4  # of the sparse result against the masked dense network, values in [0, 1]


def convert(source: Path, target: Path) -> Report:
    """Write the ticket of a checkpoint. What the packed ticket restores is compared with the masked dense
    network first; a difference above 1e-4 is a UserError and nothing is written."""
    dense = load(source)
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: is the checkpoint itself; give another -o")
    network = PromptIR(dense.config)
    network.load_state_dict(dense.state_dict())
    report = describe(network, remove_dead_channels(network))
    image = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        packed, _ = unpack(pack(network, {}))
        difference = (SparseRestorer(packed)(image) - dense(image)).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"{source}: the sparse result differs from the dense one by {difference:.1e}; expected at most"
            f" {TOLERANCE:.0e}, so nothing was written"
        )
    statistics = report.statistics | {"max_difference": difference}
    write_ticket(target, network, statistics | {"layers": [asdict(layer) for layer in report.layers]})
    return report
