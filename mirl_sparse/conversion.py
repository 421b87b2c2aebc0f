"""Convert a masked checkpoint to a ticket, verified before it is written.

A PromptIR loses its dead channels. A network of another architecture keeps all its tensors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from mirl_sparse.architectures.image_network import ImageNetwork, NetworkWeights
from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.choices import BackendName, Weights
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.sparsification import SparsityReport
from mirl_sparse.sparsification.comparison import difference
from mirl_sparse.sparsification.network_restorer import NetworkRestorer, example_image
from mirl_sparse.tickets import (
    Report,
    describe,
    is_network_ticket,
    is_ticket,
    pack,
    pack_network,
    read_any_checkpoint,
    read_network_ticket,
    read_ticket,
    remove_dead_channels,
    unpack,
    unpack_network,
    write_network_ticket,
    write_ticket,
)

TOLERANCE = 1e-4  # of the sparse result against the masked dense network, values in [0, 1]


@dataclass(frozen=True)
class NetworkReport:
    """Say what became of a network of another architecture than PromptIR.

    Attributes:
        sparsity: What became of each layer on this machine.
        architecture: Name of the architecture as spandrel has it.
        scale: How many times larger the result is than the image.
        parameters: Parameters that are not zero.
        parameters_dense: All parameters.
        difference: Largest difference from the dense network's result, relative to its largest value, or to 1
            where that is less.
        source: What the file was that the network was read from, and which of its weights.
    """

    sparsity: SparsityReport
    architecture: str
    scale: int
    parameters: int
    parameters_dense: int
    difference: float
    source: str = ""

    @property
    def statistics(self) -> dict[str, float]:
        """Return the figures that a ticket stores."""
        return {
            "density": self.sparsity.density,
            "weights": sum(x.nonzero for x in self.sparsity.layers),
            "weights_dense": sum(x.total for x in self.sparsity.layers),
            "parameters": self.parameters,
            "parameters_dense": self.parameters_dense,
            "max_difference": self.difference,
        }


def convert(source: str | Path, target: str | Path, weights: str = Weights.AUTO) -> Report | NetworkReport:
    """Write the ticket of a checkpoint.

    What the packed ticket restores is compared with the masked dense network first.

    Args:
        source: A checkpoint of a PromptIR or, with the extra spandrel, of any network that spandrel
            recognises; or a ticket to convert again.
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
    if is_network_ticket(source):
        return _convert_network(source, read_network_ticket(source), target)
    if is_ticket(source):
        dense, what = read_ticket(source)[0], "ticket"
    else:
        checkpoint = read_any_checkpoint(source, weights)
        if isinstance(checkpoint, NetworkWeights):
            return _convert_network(source, checkpoint, target)
        dense, what = checkpoint.network(), checkpoint.source
    _check_target(source, target)
    network = PromptIR(dense.config)
    network.load_state_dict(dense.state_dict())
    report = replace(describe(network, remove_dead_channels(network)), source=what)
    by = _difference(dense, network)
    _check_difference(source, by)
    statistics = report.statistics | {"max_difference": by}
    write_ticket(target, network, statistics | {"layers": [asdict(layer) for layer in report.layers]})
    return report


def _convert_network(source: Path, weights: NetworkWeights, target: Path) -> NetworkReport:
    """Write the ticket of a network of another architecture."""
    _check_target(source, target)
    try:
        report = describe_network(weights.network(), unpack_network(pack_network(weights, {})))
    except UserError as error:
        raise UserError(f"{source}: {error}; nothing was written") from error.__cause__
    _check_difference(source, report.difference)
    layers = {"layers": [asdict(layer) for layer in report.sparsity.layers]}
    write_network_ticket(target, pack_network(weights, report.statistics | layers))
    return replace(report, source=weights.source)


@torch.no_grad()
def describe_network(dense: ImageNetwork, weights: NetworkWeights | None = None) -> NetworkReport:
    """Return the report on a network as it stands, sparsified for this machine.

    Args:
        dense: The network; its zeros are its mask.
        weights: What the sparse network is made of; by default the network itself.

    Raises:
        UserError: The sparse network restores something else than the dense one.
        BackendError: The C++ kernels were not built.
    """
    restorer = NetworkRestorer(dense if weights is None else weights.network(), BackendName.CPU)
    assert restorer.report is not None
    image = 1 - example_image(dense)  # another one than sparsify compares
    parameters = list(dense.parameters())
    return NetworkReport(
        restorer.report,
        dense.architecture,
        dense.scale,
        sum(int(p.count_nonzero()) for p in parameters),
        sum(p.numel() for p in parameters),
        difference(dense(image), restorer.network(image)),
    )


def _check_target(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        raise UserError(f"{target}: is the checkpoint itself; give another -o")


def _check_difference(source: Path, by: float) -> None:
    if not by <= TOLERANCE:
        raise UserError(
            f"{source}: the sparse result differs from the dense one by {by:.1e}; expected at most"
            f" {TOLERANCE:.0e}, so nothing was written"
        )


@torch.no_grad()
def _difference(dense: PromptIR, network: PromptIR) -> float:
    """Return the largest difference between one network and the other's ticket, on one image."""
    side = dense.config.multiple
    image = torch.rand(1, 3, 5 * side, 7 * side, generator=torch.Generator().manual_seed(0))
    packed, _ = unpack(pack(network, {}))
    return (SparseRestorer(packed)(image) - dense(image)).abs().max().item()
