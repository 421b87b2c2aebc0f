"""Convert a masked checkpoint to a ticket: without dead channels, verified before it is written."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.choices import Weights
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.tickets import (
    Report,
    describe,
    is_ticket,
    pack,
    read_checkpoint,
    read_ticket,
    remove_dead_channels,
    unpack,
    write_ticket,
)

TOLERANCE = 1e-4  # of the sparse result against the masked dense network, values in [0, 1]


def convert(source: str | Path, target: str | Path, weights: str = Weights.AUTO) -> Report:
    """Write the ticket of a checkpoint.

    What the packed ticket restores is compared with the masked dense network first.

    Args:
        source: A checkpoint, or a ticket to convert again.
        target: The ticket; another file than the checkpoint.
        weights: "auto" (averaged ones where there are any), "averaged" or "raw": which weights of a
            checkpoint are read.

    Returns:
        The report on the ticket's network.

    Raises:
        UserError: The checkpoint cannot be read, the ticket cannot be written, or the two results differ by
            more than `TOLERANCE`; nothing is written then.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from mirl_sparse import PromptIR, PromptIRConfig, convert
        >>> config = PromptIRConfig(dim=8, num_blocks=(1, 1, 1, 1), prompt_dims=(4, 4, 8))
        >>> network = PromptIR(config).requires_grad_(False)
        >>> for parameter in network.parameters():
        ...     _ = parameter.mul_(torch.rand(parameter.shape) < 0.1)
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(network.state_dict(), f"{folder}/last.ckpt")
        ...     report = convert(f"{folder}/last.ckpt", f"{folder}/ticket.safetensors")
        >>> report.statistics["density"] < 0.11
        True
    """
    if not isinstance(source, (str, Path)):
        kind = type(source).__name__
        raise UserError(f"source is {kind}; expected a file (give a network to mirl_sparse.sparsify)")
    source, target = Path(source), Path(target)
    if is_ticket(source):
        dense, what = read_ticket(source)[0], "ticket"
    else:
        checkpoint = read_checkpoint(source, weights)
        dense, what = checkpoint.network(), checkpoint.source
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: is the checkpoint itself; give another -o")
    network = PromptIR(dense.config)
    network.load_state_dict(dense.state_dict())
    report = replace(describe(network, remove_dead_channels(network)), source=what)
    difference = _difference(dense, network)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{source}: the sparse result differs from the dense one by {difference:.1e}; expected at most"
            f" {TOLERANCE:.0e}, so nothing was written"
        )
    statistics = report.statistics | {"max_difference": difference}
    write_ticket(target, network, statistics | {"layers": [asdict(layer) for layer in report.layers]})
    return report


@torch.no_grad()
def _difference(dense: PromptIR, network: PromptIR) -> float:
    """Return the largest difference between one network and the other's ticket, on one image."""
    side = dense.config.multiple
    image = torch.rand(1, 3, 5 * side, 7 * side, generator=torch.Generator().manual_seed(0))
    packed, _ = unpack(pack(network, {}))
    return (SparseRestorer(packed)(image) - dense(image)).abs().max().item()
