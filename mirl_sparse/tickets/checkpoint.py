"""Read a PromptIR from the files people have: Lightning checkpoints, state dicts, safetensors.

The architecture is inferred from the tensors' names and shapes, so that any width and depth loads.
A file is untrusted input: nothing in it is run, and whatever is wrong with it ends as one line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.detection import ADVICE, SIGNATURE, check_shapes, infer_config, listed
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.architectures.promptir.topology import stages, unused_weights
from mirl_sparse.choices import Weights
from mirl_sparse.errors import FileContentError
from mirl_sparse.files import not_the_file
from mirl_sparse.tickets.candidates import Candidate, find_candidates, mappings, with_masks
from mirl_sparse.tickets.pickles import StandIn, code_refused, load_pickle
from mirl_sparse.tickets.torch_pruning import merge_weight_norm, split_masks

_STAGES = frozenset(stage.name for stage in stages(PromptIRConfig()))  # in every config the same
_PROMPTS = ("prompt1.", "prompt2.", "prompt3.")
_COUNTERS = frozenset({"total_ops", "total_params", "num_batches_tracked"})  # of thop and batch norms

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_MASKS = _FLOATS | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_SAFETENSORS_HEADER = 100_000_000  # the format's own limit, in bytes


class CheckpointError(FileContentError):
    """Report a file or state dict that holds no PromptIR; the message is one line for the user."""


class NotPromptIRError(CheckpointError):
    """Report a file or state dict that holds no network with a PromptIR's names."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Hold the weights of a network as read from a file (zeros are the mask).

    Attributes:
        path: The file.
        config: Widths and depths of the network.
        state: The weights by published name, in the published order: float32, contiguous, on the CPU, with
            masks applied.
        source: One phrase that says what the file was.
        ignored: Names of the tensors that are stored and never used. They stay in ``state``, since the
            network of ``config`` has them.
    """

    path: Path
    config: PromptIRConfig
    state: dict[str, Tensor] = field(repr=False)
    source: str
    ignored: tuple[str, ...]

    def network(self) -> PromptIR:
        """Return a new network with a copy of these weights, in eval mode."""
        with torch.device("meta"):  # skips drawing initial weights
            network = PromptIR(self.config)
        state = {name: value.clone() for name, value in self.state.items()}
        network.load_state_dict(state, assign=True)  # to_empty would import sympy: half a second
        return network.eval()


def read_checkpoint(path: Path, weights: str = Weights.AUTO) -> Checkpoint:
    """Return the PromptIR in a file.

    It is found below any name, beside other tensors and objects. Of several networks an average is preferred
    (`find_candidates`); `Checkpoint.source` says which one was read.

    Args:
        path: A Lightning ``.ckpt``, a ``.pt`` or ``.pth`` state dict, plain or nested, or a safetensors file.
        weights: "auto", "averaged" or "raw": which weights are read where there are several.

    Raises:
        CheckpointError: The file cannot be read, is not safe to read, or holds no whole, finite,
            floating-point PromptIR.
    """
    path = Path(path)
    with naming(path):
        return promptir_in(read_content(path), check_weights(weights), path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the path before the message of a `FileContentError`, which becomes a `CheckpointError`."""
    try:
        yield
    except FileContentError as error:
        kind = NotPromptIRError if isinstance(error, NotPromptIRError) else CheckpointError
        raise kind(f"{path}: {error}") from error.__cause__


def check_weights(weights: str) -> Weights:
    """Return which weights are wanted.

    Raises:
        CheckpointError: No kind of weights has this name.
    """
    if weights not in list(Weights):
        raise CheckpointError(f"weights is {weights!r}; expected {Weights.names()}")
    return Weights(weights)


@dataclass(frozen=True)
class Content:
    """Hold what a file contains, before anything is looked for in it.

    Attributes:
        objects: What was stored, containers by name.
        metadata: Of a safetensors file.
        kind: One phrase that says what the file is.
        foreign: Classes whose objects are left out.
    """

    objects: Mapping[object, object]
    metadata: Mapping[str, str]
    kind: str
    foreign: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Network:
    """Hold a network that was found: its config, its weights, and what it was stored beside and with."""

    config: PromptIRConfig
    state: dict[str, Tensor]
    others: frozenset[str]
    was_masked: bool


def promptir_in(content: Content, weights: Weights, path: Path) -> Checkpoint:
    """Return the PromptIR in what a file contains.

    Args:
        content: Of the file.
        weights: Which weights are read where there are several.
        path: The file.

    Raises:
        NotPromptIRError: Nothing in it has a PromptIR's names.
        FileContentError: It is no whole, finite, floating-point PromptIR.
    """
    candidates = find_candidates(content.objects, weights)
    if not candidates:
        raise NotPromptIRError(_nothing_found(content))
    candidate, network, broken = _first_whole(candidates, content.objects)
    config = network.config
    if stated := _stated_config(content.metadata):
        config = _agreed(config, stated)
    unused = unused_weights(config)
    return Checkpoint(
        path=path,
        config=config,
        state=network.state,
        source=describe_source(content, candidate, bool(network.others), network.was_masked, broken),
        ignored=tuple(name for name in network.state if name in unused),
    )


def _first_whole(
    candidates: list[Candidate], content: Mapping[object, object]
) -> tuple[Candidate, _Network, list[Candidate]]:
    """Return the first candidate that is a whole network, that network, and the candidates before it.

    If none is whole, say what is wrong with the first.
    """
    first_error: FileContentError | None = None
    for i, candidate in enumerate(candidates):
        try:
            return candidate, _network_in(with_masks(candidate, content)), candidates[:i]
        except FileContentError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _nothing_found(content: Content) -> str:
    held = describe_tensors(content)
    if content.foreign and held is None:
        return code_refused(content.foreign[0])
    what = held or "it holds no tensors by name"
    return f"not a PromptIR: expected a tensor {SIGNATURE}, and {what}; {ADVICE}"


def describe_tensors(content: Content) -> str | None:
    """Return what tensors the largest mapping of a file holds, for messages; None if there are none."""
    most: list[str] = []
    for _, mapping in mappings(content.objects):
        names = [k for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Tensor)]
        most = max(most, names, key=len)
    return f"it holds {listed(most)}" if most else None


def describe_source(
    content: Content, candidate: Candidate, has_others: bool, was_masked: bool, broken: list[Candidate]
) -> str:
    """Return what a file is, which of its weights were read, and what was left out.

    Args:
        content: Of the file.
        candidate: The weights that were read.
        has_others: Whether tensors beside them, under the same prefix, are none of the network's.
        was_masked: Whether masks were applied.
        broken: Weights that are preferred and cannot be used.
    """
    lightning = "pytorch-lightning_version" in content.objects
    if not candidate.where:
        text = content.kind
    elif lightning and candidate.where == "state_dict":
        text = "Lightning checkpoint"
    else:
        text = f"nested state dict under {candidate.where!r}"
    if candidate.has_more or has_others:
        text += f", its tensors below {candidate.prefix!r}" if candidate.prefix else ", its own tensors"
    if candidate.is_average:
        text += ", averaged weights"
    if was_masked:
        text += " (masks applied)"
    if averages := [str(c) for c in broken if c.is_average]:
        text += f"; averaged weights under {listed(averages)} cannot be used (--weights averaged says why)"
    return text + (f"; left out objects of {listed(content.foreign)}" if content.foreign else "")


def read_content(path: Path) -> Content:
    """Return what a file contains; nothing in it is run.

    Args:
        path: A file of torch.save, or a safetensors file.

    Raises:
        FileContentError: The file cannot be read, is not safe to read, or is no mapping.
    """
    head = _head(path)
    # A safetensors file begins with its header's length, then the header, a JSON object.
    sized = int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER and head[8:9] == b"{"
    if sized or path.suffix.lower() == ".safetensors":
        return _load_safetensors(path)
    objects, foreign = load_pickle(path, head)
    if isinstance(objects, (list, tuple)) and any(isinstance(x, Mapping) for x in objects):
        objects = dict(enumerate(objects))
    if isinstance(objects, StandIn):
        raise CheckpointError(code_refused(objects.stands_for))
    if not isinstance(objects, Mapping):
        raise CheckpointError(
            f"holds a {type(objects).__name__}; expected a state dict of a PromptIR; {ADVICE}"
        )
    return Content(objects, {}, "state dict", foreign)


def _head(path: Path) -> bytes:
    """Return how a regular file begins that is not empty and could be a checkpoint."""
    try:
        regular = path.is_file() or not path.exists()
        head = b""
        if regular:
            with path.open("rb") as file:
                head = file.read(64)
    except FileNotFoundError as error:
        raise CheckpointError("no such file; expected a checkpoint, so check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise CheckpointError(
            f"cannot be read ({error}); expected a checkpoint, so check the path"
        ) from error
    if not regular:
        raise CheckpointError("not a regular file; expected a checkpoint, so name the file itself")
    if not head:
        raise CheckpointError("an empty file; expected a checkpoint, so download or save it again")
    if reason := not_the_file(head):
        raise CheckpointError(reason)
    return head


def _load_safetensors(path: Path) -> Content:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Content(tensors, file.metadata() or {}, "safetensors")
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"not a whole safetensors file ({error}); expected one, so download or save it again"
        ) from error


def _network_in(candidate: Candidate) -> _Network:
    """Return the network of a candidate; every tensor must be dense, in memory and of its own size.

    Raises:
        FileContentError: It is no whole PromptIR.
    """
    others = frozenset(name for name, tensor in candidate.tensors.items() if _is_beside(name, tensor))
    tensors = {name: tensor for name, tensor in candidate.tensors.items() if name not in others}
    if not any(name.startswith(_PROMPTS) for name in tensors):
        raise NotPromptIRError(
            "looks like a Restormer: a PromptIR without prompts; expected a PromptIR, so load the network"
            " yourself and give it to mirl_sparse.sparsify"
        )
    for name, tensor in tensors.items():
        check_plain(candidate.stored_as.get(name, name), tensor)
    weights, masks = split_masks(merge_weight_norm(tensors))
    config = infer_config(weights)
    names = check_shapes(weights, config)
    state = {name: float32_weight(name, weights[name], masks.get(name)) for name in names}
    return _Network(config, state, others, bool(masks))


def _is_beside(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is none of the network's: a loss's, a metric's, or a counter of some tool."""
    stage, _, inner = name.partition(".")
    if stage not in _STAGES:
        return True
    return inner.rpartition(".")[2] in _COUNTERS and tensor.numel() == 1


def check_plain(name: str, tensor: Tensor) -> None:
    """Raise CheckpointError unless a tensor is dense, in memory and of its own size."""
    plain = tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized)
    if not plain or tensor.device.type != "cpu":
        raise CheckpointError(
            f"{name} is {'' if plain else 'a sparse, nested or quantised tensor '}on {tensor.device};"
            " expected plain values, so save dense CPU tensors"
        )
    # A few bytes can claim any shape by repeating themselves; without this they would fill the memory.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{name} repeats its stored values; expected one per weight, so save .contiguous()"
        )


def _stated_config(metadata: Mapping[str, str]) -> dict[str, object] | None:
    """Return the config in a file's metadata; None if there is none, or that of another program."""
    try:
        stated = json.loads(metadata.get("config", ""))
    except (ValueError, RecursionError):
        return None
    known = {f.name for f in fields(PromptIRConfig)}
    return stated if isinstance(stated, dict) and not known.isdisjoint(stated) else None


def _agreed(inferred: PromptIRConfig, settings: dict[str, object]) -> PromptIRConfig:
    """Return the inferred config with the exact ffn_expansion of the stated one; the two must agree."""
    try:
        stated = PromptIRConfig.from_dict(settings)
        widths = [stage.inputs for stage in stages(inferred) if stage.depth]
        # Many factors give the same widths.
        if all(int(c * stated.ffn_expansion) == int(c * inferred.ffn_expansion) for c in widths):
            inferred = replace(inferred, ffn_expansion=stated.ffn_expansion)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"the config in its metadata is no PromptIR's ({error}); correct or remove it"
        ) from error
    for name in (f.name for f in fields(inferred)):
        said, actual = getattr(stated, name), getattr(inferred, name)
        if said != actual:
            raise CheckpointError(
                f"the config in its metadata says {name} {said}, its tensors {actual};"
                " correct or remove the config"
            )
    return inferred


def float32_weight(name: str, tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Return a float32 copy, masked: the file's tensors may share memory with each other or the disk.

    Raises:
        CheckpointError: The weight is not floating-point and finite, or the mask is not of zeros and ones.
    """
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(
            f"{name} is {tensor.dtype}; expected floating-point weights, so save them as float32"
        )
    if mask is not None and mask.dtype not in _MASKS:
        raise CheckpointError(f"{name}_mask is {mask.dtype}; expected zeros and ones, so save it as float32")
    if mask is not None and not ((mask == 0) | (mask == 1)).all():
        raise CheckpointError(f"the mask of {name} holds other values than 0 and 1; expected a mask of those")
    weight = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if mask is not None:
        weight *= mask.detach().to(torch.float32)
    if not torch.isfinite(weight).all():
        raise CheckpointError(f"{name} holds NaN or infinite float32 values; expected finite weights")
    return weight
