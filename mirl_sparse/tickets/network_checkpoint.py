"""Read a network of any known architecture: a PromptIR, or what spandrel recognises."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mirl_sparse.architectures.image_network import (
    INSTALL,
    ImageNetwork,
    NetworkWeights,
    detect,
    has_extra,
    is_available,
    versions,
)
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.choices import Weights
from mirl_sparse.errors import FileContentError
from mirl_sparse.tickets.candidates import Candidate, find_state_dicts, with_masks
from mirl_sparse.tickets.checkpoint import (
    Checkpoint,
    CheckpointError,
    Content,
    NotPromptIRError,
    check_plain,
    check_weights,
    describe_source,
    describe_tensors,
    float32_weight,
    naming,
    promptir_in,
    read_content,
)
from mirl_sparse.tickets.file import is_network_ticket, is_ticket, read_ticket
from mirl_sparse.tickets.network_file import read_network_ticket
from mirl_sparse.tickets.torch_pruning import split_masks

_ELSE = "build the network in Python and give it to mirl_sparse.sparsify, which converts any nn.Module"


def load_any_network(path: Path) -> PromptIR | ImageNetwork:
    """Return the network of a ticket or a checkpoint, of any known architecture.

    Raises:
        TicketError: The file says that it is a ticket and cannot be read as one.
        CheckpointError: The file is no ticket, and no checkpoint of a known architecture.
    """
    if is_network_ticket(path):
        weights = read_network_ticket(path)
        with naming(path):
            return weights.network()
    return read_ticket(path)[0] if is_ticket(path) else read_any_checkpoint(path).network()


def read_any_checkpoint(path: Path, weights: str = Weights.AUTO) -> Checkpoint | NetworkWeights:
    """Return the network in a checkpoint: a PromptIR if it is one, or else what spandrel recognises.

    PromptIR comes first, since spandrel takes it for a Restormer.

    Args:
        path: A file of torch.save or a safetensors file, as for `read_checkpoint`.
        weights: "auto", "averaged" or "raw": which weights are read where there are several.

    Raises:
        CheckpointError: The file cannot be read, is not safe to read, or holds no whole network of a known
            architecture.
    """
    with naming(path):
        wanted, content = check_weights(weights), read_content(path)
        try:
            return promptir_in(content, wanted, path)
        except NotPromptIRError as error:
            held = describe_tensors(content)
            if held is None:
                raise
            if not is_available():
                raise CheckpointError(
                    f"not a PromptIR; {held}; other networks are recognised by the package spandrel:"
                    f" {INSTALL}, or {_ELSE}"
                ) from error
        network = _known_network(content, wanted)
        if network is None:
            more = "" if has_extra() else " (the extra spandrel-extra knows more, such as Restormer)"
            raise CheckpointError(
                f"neither a PromptIR nor a network that {versions()} knows{more}; {held}; {_ELSE}"
            )
        return network


def _known_network(content: Content, weights: Weights) -> NetworkWeights | None:
    """Return the first network in a file that spandrel recognises and can build; None if it knows none."""
    first_error: FileContentError | None = None
    broken: list[Candidate] = []
    for candidate in find_state_dicts(content.objects, weights):
        name = detect({n.removesuffix("_orig"): tensor for n, tensor in candidate.tensors.items()})
        if name is None:
            continue
        try:
            state, was_masked = _state(with_masks(candidate, content.objects))
            source = describe_source(content, candidate, False, was_masked, broken)
            network = NetworkWeights(name, state, f"{name}, {source}")
            network.network()  # is it whole?
            return network
        except FileContentError as error:
            first_error = first_error or error
            broken.append(candidate)
    if first_error is not None:
        raise first_error
    return None


def _state(candidate: Candidate) -> tuple[dict[str, Tensor], bool]:
    """Return the weights of a candidate, with masks applied, and whether there were any.

    A buffer may be called x_mask too: only a pair x_orig and x_mask is one of torch.nn.utils.prune.
    """
    for name, tensor in candidate.tensors.items():
        check_plain(candidate.stored_as.get(name, name), tensor)
    stems = {name.removesuffix("_orig") for name in candidate.tensors if name.endswith("_orig")}
    pairs = {f"{stem}_{role}" for stem in stems for role in ("orig", "mask")}
    weights, masks = split_masks({n: t for n, t in candidate.tensors.items() if n in pairs})
    weights |= {n: t for n, t in candidate.tensors.items() if n not in pairs}
    return {name: _value(name, tensor, masks.get(name)) for name, tensor in weights.items()}, bool(masks)


def _value(name: str, tensor: Tensor, mask: Tensor | None) -> Tensor:
    if tensor.is_floating_point() and mask is not None:
        return float32_weight(name, tensor, mask)
    copied = tensor.detach().clone()
    return copied.float() if copied.is_floating_point() else copied
