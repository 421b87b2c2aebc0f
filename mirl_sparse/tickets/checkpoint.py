"""Read a PromptIR from the files people have: Lightning checkpoints, state dicts, safetensors.

The architecture is inferred from the tensors' names and shapes, so that any width and depth loads.
A file is untrusted input: nothing in it is run, and whatever is wrong with it ends as one line.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import dropwhile
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.detection import ADVICE, SIGNATURE, check_shapes, infer_config, listed
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.architectures.promptir.topology import stages, unused_weights
from mirl_sparse.errors import FileContentError
from mirl_sparse.tickets.torch_pruning import split_masks

WRAPPERS = frozenset({"net", "module", "model"})  # Lightning's, DataParallel's and trainers' own attribute
COMPILED = "_orig_mod"  # torch.compile inserts it wherever it wrapped, also in the middle of a name
# Where trainers keep the weights, in the order they are tried after any exponential moving average.
CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "params",
    "model",
    "network",
    "net",
    "net_g",
    "generator",
    "module",
)
_EMA = re.compile(r"(^|_)ema(_|$)")
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_MASKS = _FLOATS | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_SAFETENSORS_HEADER = 100_000_000  # the format's own limit, in bytes


class CheckpointError(FileContentError):
    """Report a file or state dict that holds no PromptIR; the message is one line for the user."""


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


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the PromptIR in a file.

    Of several networks in a file the shallowest is read. At equal depth an exponential moving average comes
    first, then `CONTAINERS` in order, then the file's own order.

    Args:
        path: A Lightning ``.ckpt``, a ``.pt`` or ``.pth`` state dict, plain or nested, or a safetensors file.

    Raises:
        CheckpointError: The file cannot be read, is not safe to read, or holds no whole, finite,
            floating-point PromptIR.
    """
    path = Path(path)
    try:
        return _read(path)
    except FileContentError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__


@dataclass(frozen=True)
class _Content:
    """Hold what a file contains, before anything is looked for in it."""

    objects: object
    metadata: Mapping[str, str]
    kind: str


def _read(path: Path) -> Checkpoint:
    content = _load(path)
    tensors, where = _find_network(content.objects)
    weights, masks = split_masks(_publish(tensors))
    config = infer_config(weights)
    names = check_shapes(weights, config)
    if stated := content.metadata.get("config"):
        config = _agreed(config, stated)
    unused = unused_weights(config)
    return Checkpoint(
        path=path,
        config=config,
        state={name: _weight(name, weights[name], masks.get(name)) for name in names},
        source=_source(content, where) + (" (torch.nn.utils.prune masks applied)" if masks else ""),
        ignored=tuple(name for name in names if name in unused),
    )


def _source(content: _Content, where: str) -> str:
    """Return what a file is whose network lies at the dotted path ``where``."""
    if not where:
        return content.kind
    lightning = isinstance(content.objects, Mapping) and "pytorch-lightning_version" in content.objects
    if lightning and where == "state_dict":
        return "Lightning checkpoint"
    return f"nested state dict under {where!r}"


def _load(path: Path) -> _Content:
    head = _head(path)
    # A safetensors file begins with its header's length, then the header, a JSON object.
    sized = int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER and head[8:] == b"{"
    if sized or path.suffix.lower() == ".safetensors":
        return _load_safetensors(path)
    return _Content(_load_pickle(path, head), {}, "state dict")


def _head(path: Path) -> bytes:
    """Return the first nine bytes of a regular file that is not empty."""
    try:
        regular = path.is_file() or not path.exists()
        head = b""
        if regular:
            with path.open("rb") as file:
                head = file.read(9)
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
    return head


def _load_safetensors(path: Path) -> _Content:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return _Content(tensors, file.metadata() or {}, "safetensors")
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"not a whole safetensors file ({error}); expected one, so download or save it again"
        ) from error


def _load_pickle(path: Path, head: bytes) -> object:
    try:
        if is_zipfile(path) and any(
            record.compress_type != ZIP_STORED for record in ZipFile(path).infolist()
        ):
            raise CheckpointError(
                "its records are compressed, which none of PyTorch's are; expected a file of torch.save"
            )
        # Not memory-mapped: a file that a training run rewrites meanwhile would end the process by a signal.
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises anything, from struct.error to AssertionError
        raise CheckpointError(_why_refused(head, error)) from error


def _why_refused(head: bytes, error: Exception) -> str:
    """Return what is wrong with a file, by its first bytes and by what torch.load says of it."""
    archive = head.startswith(b"PK\x03\x04")
    if isinstance(error, pickle.UnpicklingError) and (archive or head.startswith(b"\x80")):
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"pickled code ({named[1]})" if named else "pickled Python objects (or is damaged)"
        return (
            f"holds {what}, which is unsafe: to load it could run anything; expected tensors only, so save a"
            " plain state dict, torch.save(network.state_dict(), 'weights.pt'), where you trust the file"
        )
    if archive:
        return (
            "a zip archive but no whole PyTorch checkpoint (truncated, damaged, TorchScript or another kind"
            " of file); expected a state dict, so download or save it again"
        )
    return (
        "neither a PyTorch checkpoint nor a safetensors file, or damaged;"
        " expected a .ckpt, .pt, .pth or .safetensors"
    )


def _find_network(content: object) -> tuple[dict[str, Tensor], str]:
    """Return the first mapping, breadth first, that has a PromptIR's patch embedding, and its dotted path."""

    def rank(key: object) -> int:
        if not isinstance(key, str):
            return len(CONTAINERS)
        if _EMA.search(key):
            return -1
        return CONTAINERS.index(key) if key in CONTAINERS else len(CONTAINERS)

    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"holds a {type(content).__name__}; expected a state dict of a PromptIR; {ADVICE}"
        )
    queue: list[tuple[str, Mapping[object, object]]] = [("", content)]
    seen = {id(content)}
    most: dict[str, Tensor] = {}
    for where, mapping in queue:  # grows while it is read
        tensors = {k: v for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if any(_published(name).removesuffix("_orig") == SIGNATURE for name in tensors):
            return tensors, where
        most = max(most, tensors, key=len)
        for key in sorted(mapping, key=rank):
            child = mapping[key]
            if isinstance(child, Mapping) and id(child) not in seen:  # a pickle may contain itself
                seen.add(id(child))
                queue.append((f"{where}.{key}" if where else str(key), child))
    what = f"it holds {listed(most)}" if most else "it holds no tensors by name"
    raise CheckpointError(f"not a PromptIR: expected a tensor {SIGNATURE}, and {what}; {ADVICE}")


def _published(name: str) -> str:
    """Return ``x`` for ``net._orig_mod.module.x``."""
    parts = [part for part in name.split(".") if part != COMPILED]
    return ".".join(dropwhile(WRAPPERS.__contains__, parts))


def _publish(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by published name; every one must be dense, in memory and of its own size."""
    stored_as: dict[str, str] = {}
    for name, tensor in tensors.items():
        if (other := stored_as.setdefault(_published(name), name)) != name:
            raise CheckpointError(
                f"{other} and {name} both name {_published(name)}; expected one network, so save only one"
            )
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
    return {published: tensors[name] for published, name in stored_as.items()}


def _agreed(inferred: PromptIRConfig, text: str) -> PromptIRConfig:
    """Return the inferred config with the exact ffn_expansion of the stated one; the two must agree."""
    try:
        stated = PromptIRConfig.from_dict(json.loads(text))
        widths = [stage.inputs for stage in stages(inferred) if stage.depth]
        # Many factors give the same widths.
        if all(int(c * stated.ffn_expansion) == int(c * inferred.ffn_expansion) for c in widths):
            inferred = replace(inferred, ffn_expansion=stated.ffn_expansion)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
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


def _weight(name: str, tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Return a float32 copy, masked: the file's tensors may share memory with each other or the disk."""
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(
            f"{name} is {tensor.dtype}; expected floating-point weights, so save them as float32"
        )
    if mask is not None and mask.dtype not in _MASKS:
        raise CheckpointError(f"{name}_mask is {mask.dtype}; expected zeros and ones, so save it as float32")
    weight = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if mask is not None:
        weight *= mask.detach().to(torch.float32)
    if not torch.isfinite(weight).all():
        raise CheckpointError(f"{name} holds NaN or infinite float32 values; expected finite weights")
    return weight
