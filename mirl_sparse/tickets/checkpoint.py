"""Reading a PromptIR from the files people have: Lightning checkpoints, state dicts, safetensors.

The architecture is inferred from the tensors' names and shapes, so that any width and depth loads.
A file is untrusted input: nothing in it is run, and whatever is wrong with it ends as one line.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from functools import cache
from itertools import dropwhile
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mirl_sparse.architectures.promptir.config import ConfigError, PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.architectures.promptir.topology import Kind, stages
from mirl_sparse.errors import UserError, printable

WRAPPERS = frozenset({"net", "module", "model"})  # Lightning's, DataParallel's and trainers' own attribute
COMPILED = "_orig_mod"  # torch.compile inserts it wherever it wrapped, also in the middle of a name
# Where trainers keep the weights, in the order they are tried after any exponential moving average.
CONTAINERS = (
    "state_dict", "model_state_dict", "params", "model", "network", "net", "net_g", "generator", "module",
)  # fmt: skip
_EMA = re.compile(r"(^|_)ema(_|$)")
_SIGN = "patch_embed.proj.weight"  # the tensor by which a PromptIR is recognised
_PRUNED = re.compile(r"(.+)_(orig|mask)")  # torch.nn.utils.prune stores `x` as x_orig and x_mask
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_MASKS = _FLOATS | {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_STAGES = tuple(stage.name for stage in stages(PromptIRConfig()) if stage.kind is Kind.BLOCKS)
_SAFETENSORS_HEADER = 100_000_000  # the format's own limit, in bytes
_ADVICE = "give the whole checkpoint of one PromptIR or MIR-L network"


class CheckpointError(UserError):
    """A file or state dict that holds no PromptIR; the message is one line for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network's weights as read from a file (zeros are the mask).

    ``state`` has the published names and order, float32, contiguous, on the CPU, with masks applied.
    ``source`` says in one phrase what the file was. ``ignored`` names the tensors that are stored and
    never used; they stay in ``state``, since the network of ``config`` has them.
    """

    path: Path
    config: PromptIRConfig
    state: dict[str, Tensor] = field(repr=False)
    source: str
    ignored: tuple[str, ...]

    def network(self) -> PromptIR:
        """A new network with a copy of these weights, in eval mode."""
        with torch.device("meta"):  # skips drawing initial weights
            network = PromptIR(self.config)
        network.to_empty(device="cpu").load_state_dict(self.state, strict=True)
        return network.eval()


def read_checkpoint(path: Path) -> Checkpoint:
    """The PromptIR in a Lightning ``.ckpt``, a ``.pt``/``.pth`` state dict, plain or nested, or a safetensors file.

    Of several networks in a file the shallowest is read; at equal depth an exponential moving
    average comes first, then `CONTAINERS` in order, then the file's own order.
    Raises `CheckpointError` for a file that cannot be read, is not safe to read, or holds no
    whole, finite, floating-point PromptIR.
    """
    path = Path(path)
    try:
        return _read(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error.__cause__


def infer_config(state: Mapping[str, Tensor]) -> PromptIRConfig:
    """The architecture of a state dict with published names; only shapes are read, so meta tensors serve.

    Raises `CheckpointError` when a tensor that is needed is missing or has the wrong number of
    dimensions, when stages disagree, or when no network has these widths. It does not look at
    every tensor: `read_checkpoint` compares them all with the network of the result.
    """
    depth = {stage: _block_count(state, stage) for stage in _STAGES}
    for level in (1, 2, 3):
        encoder, decoder = f"encoder_level{level}", f"decoder_level{level}"
        if depth[encoder] != depth[decoder]:
            raise CheckpointError(
                f"{encoder} has {depth[encoder]} block(s) and {decoder} {depth[decoder]};"
                f" expected equal counts; {_ADVICE}"
            )
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    heads = [_shape(state, f"{stage}.0.attn.temperature", 3)[0] for stage in levels]
    prompts = [_shape(state, f"prompt{i}.prompt_param", 5) for i in (1, 2, 3)]
    try:
        return PromptIRConfig(
            dim=_shape(state, _SIGN, 4)[0],
            num_blocks=tuple(depth[stage] for stage in levels),  # type: ignore[arg-type]
            num_refinement_blocks=depth["refinement"],
            heads=tuple(heads),  # type: ignore[arg-type]
            ffn_expansion=_expansion(state),
            prompt_dims=tuple(shape[2] for shape in prompts),  # type: ignore[arg-type]
            prompt_sizes=tuple(shape[3] for shape in prompts),  # type: ignore[arg-type]
            prompt_count=prompts[0][1],
            unused_layers=not _unused_names().isdisjoint(state),
        )
    except ConfigError as error:
        raise CheckpointError(
            f"the shapes of the tensors describe no PromptIR: {error}; {_ADVICE}"
        ) from error


def _read(path: Path) -> Checkpoint:
    content, metadata, kind = _load(path)
    found, where = _find(content)
    if where:
        lightning = (
            where == "state_dict" and isinstance(content, Mapping) and "pytorch-lightning_version" in content
        )
        kind = "Lightning checkpoint" if lightning else f"nested state dict under {where!r}"
    weights, masks = _join_pruned(_publish(found))
    config = infer_config(weights)
    try:
        shapes = _shapes(config)
    except RuntimeError as error:  # sizes that overflow
        raise CheckpointError(
            f"the shapes of the tensors describe no PromptIR: {error}; {_ADVICE}"
        ) from error
    _compare(weights, shapes)
    if stated := metadata.get("config"):
        config = _agreed(config, stated)
    return Checkpoint(
        path=path,
        config=config,
        state={name: _weight(name, weights[name], masks.get(name)) for name in shapes},
        source=kind + (" (torch.nn.utils.prune masks applied)" if masks else ""),
        ignored=tuple(name for name in shapes if name in _unused_names()),
    )


def _load(path: Path) -> tuple[object, dict[str, str], str]:
    """(content, safetensors metadata, kind of file)."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError("not a regular file; expected a checkpoint, so name the file itself")
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError as error:
        raise CheckpointError("no such file; expected a checkpoint, so check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise CheckpointError(
            f"cannot be read ({error}); expected a checkpoint, so check the path"
        ) from error
    if not head:
        raise CheckpointError("an empty file; expected a checkpoint, so download or save it again")
    # A safetensors file begins with its header's length, then the header, a JSON object.
    sized = int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER and head[8:] == b"{"
    if sized or path.suffix.lower() == ".safetensors":
        try:
            with safe_open(path, framework="pt", device="cpu") as tensors:
                content = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
                return content, tensors.metadata() or {}, "safetensors"
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"not a whole safetensors file ({error}); expected one, so download or save it again"
            ) from error
    try:
        if is_zipfile(path) and any(
            record.compress_type != ZIP_STORED for record in ZipFile(path).infolist()
        ):
            raise CheckpointError(
                "its records are compressed, which none of PyTorch's are; expected a file of torch.save"
            )
        # Not memory-mapped: a file that a training run rewrites meanwhile would end the process by a signal.
        return torch.load(path, map_location="cpu", weights_only=True), {}, "state dict"
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises anything, from struct.error to AssertionError
        raise CheckpointError(_why_refused(head, error)) from error


def _why_refused(head: bytes, error: Exception) -> str:
    archive = head.startswith(b"PK\x03\x04")
    if isinstance(error, pickle.UnpicklingError) and (archive or head.startswith(b"\x80")):
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"pickled code ({named[1]})" if named else "pickled Python objects (or is damaged)"
        return (
            f"holds {what}, which is unsafe: to load it could run anything; expected tensors only, so save a plain"
            " state dict, torch.save(network.state_dict(), 'weights.pt'), where you trust the file"
        )
    if archive:
        return (
            "a zip archive but no whole PyTorch checkpoint (truncated, damaged, TorchScript or another kind of"
            " file); expected a state dict, so download or save it again"
        )
    return "neither a PyTorch checkpoint nor a safetensors file, or damaged; expected a .ckpt, .pt, .pth or .safetensors"


def _find(content: object) -> tuple[dict[str, Tensor], str]:
    """The first mapping, breadth first, that has a PromptIR's patch embedding, and the dotted path to it."""

    def rank(key: object) -> int:
        if not isinstance(key, str):
            return len(CONTAINERS)
        if _EMA.search(key):
            return -1
        return CONTAINERS.index(key) if key in CONTAINERS else len(CONTAINERS)

    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"holds a {type(content).__name__}; expected a state dict of a PromptIR; {_ADVICE}"
        )
    queue: list[tuple[str, Mapping[object, object]]] = [("", content)]
    seen = {id(content)}
    most: dict[str, Tensor] = {}
    for where, mapping in queue:  # grows while it is read
        tensors = {k: v for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if any(_published(name).removesuffix("_orig") == _SIGN for name in tensors):
            return tensors, where
        most = max(most, tensors, key=len)
        for key in sorted(mapping, key=rank):
            child = mapping[key]
            if isinstance(child, Mapping) and id(child) not in seen:  # a pickle may contain itself
                seen.add(id(child))
                queue.append((f"{where}.{key}" if where else str(key), child))
    what = f"it holds {_listed(most)}" if most else "it holds no tensors by name"
    raise CheckpointError(f"not a PromptIR: expected a tensor {_SIGN}, and {what}; {_ADVICE}")


def _published(name: str) -> str:
    """``net._orig_mod.module.x`` to ``x``."""
    parts = [part for part in name.split(".") if part != COMPILED]
    return ".".join(dropwhile(WRAPPERS.__contains__, parts))


def _publish(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names for those of the file; every tensor dense, in memory and of its own size."""
    given: dict[str, str] = {}
    for name, tensor in found.items():
        if (other := given.setdefault(_published(name), name)) != name:
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
    return {name: found[key] for name, key in given.items()}


def _join_pruned(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights, masks), both under the weights' names, from pairs ``x_orig`` and ``x_mask``."""
    weights: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for key, tensor in state.items():
        pair = _PRUNED.fullmatch(key)
        if pair is None:
            weights[key] = tensor
            continue
        name, role = pair.groups()
        partner = f"{name}_{'mask' if role == 'orig' else 'orig'}"
        if partner not in state:
            raise CheckpointError(
                f"{key} has no {partner}; expected both, as torch.nn.utils.prune stores them"
            )
        if name in state:
            raise CheckpointError(
                f"{name} is stored beside {key}; expected one of them, so save the network again"
            )
        if state[partner].shape != tensor.shape:
            raise CheckpointError(
                f"{key} is {_size(tensor.shape)} and {partner} {_size(state[partner].shape)}; expected equal shapes"
            )
        (weights if role == "orig" else masks)[name] = tensor
    return weights, masks


def _shape(state: Mapping[str, Tensor], name: str, dims: int) -> torch.Size:
    if name not in state:
        raise CheckpointError(f"{name} is missing; {_ADVICE}")
    shape = state[name].shape
    if len(shape) != dims:
        raise CheckpointError(f"{name} is {_size(shape)}; expected {dims} dimensions; {_ADVICE}")
    return shape


def _block_count(state: Mapping[str, Tensor], stage: str) -> int:
    """How many blocks a stage has: their indices run from 0 without a gap."""
    # Indices are compared as text: a name may hold one of a billion, or of a million digits.
    found = {name.split(".")[1] for name in state if name.startswith(f"{stage}.")}
    count = sum(index.isdecimal() for index in found)
    if lacking := [i for i in range(max(count, 1)) if str(i) not in found]:
        raise CheckpointError(f"{stage}.{lacking[0]} is missing; expected blocks numbered from 0; {_ADVICE}")
    return count


def _expansion(state: Mapping[str, Tensor]) -> float:
    """The published ffn_expansion if it gives the hidden width of every block, else the shortest decimal that does.

    A block of C channels and hidden width h = int(C * factor) leaves an interval of factors; the
    intervals are found in floating point, as int(100 * 2.3) is 229.
    """
    low, high = ("", 0.0), ("", math.inf)
    for name in state:
        if not name.endswith(".ffn.project_in.weight"):
            continue
        rows, channels, *_ = _shape(state, name, 4)
        if rows < 2 or rows % 2 or channels < 1:
            raise CheckpointError(
                f"{name} is {_size(state[name].shape)}; expected an even number of rows; {_ADVICE}"
            )
        low = max(low, (name, _least_factor(channels, rows // 2)), key=lambda bound: bound[1])
        high = min(high, (name, _least_factor(channels, rows // 2 + 1)), key=lambda bound: bound[1])
    if low[1] >= high[1]:
        shapes = " and ".join(f"{name} ({_size(state[name].shape)})" for name, _ in (low, high))
        raise CheckpointError(f"no one ffn_expansion gives the hidden widths of {shapes}; {_ADVICE}")
    if low[1] <= PromptIRConfig.ffn_expansion < high[1]:
        return PromptIRConfig.ffn_expansion
    for digits in range(18):
        floor = math.floor(Fraction(low[1]) * 10**digits)
        for numerator in (floor, floor + 1):
            if low[1] <= (factor := float(f"{numerator}e-{digits}")) < high[1]:
                return factor
    return low[1]


def _least_factor(channels: int, hidden: int) -> float:
    """The smallest float for which int(channels * factor) reaches ``hidden``; a few steps from the quotient."""
    factor = hidden / channels
    while int(channels * factor) >= hidden:
        factor = math.nextafter(factor, 0.0)
    while int(channels * factor) < hidden:
        factor = math.nextafter(factor, math.inf)
    return factor


def _shapes(config: PromptIRConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):  # shapes without memory
        return {name: tensor.shape for name, tensor in PromptIR(config).state_dict().items()}


@cache
def _unused_names() -> frozenset[str]:
    config = PromptIRConfig()
    return frozenset(_shapes(config).keys() - _shapes(replace(config, unused_layers=False)).keys())


def _compare(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    misshapen = [
        f"{name} is {_size(weights[name].shape)} (expected {_size(shape)})"
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    problems = {
        "missing ": [name for name in shapes if name not in weights],
        "not of the network ": [name for name in weights if name not in shapes],
        "": misshapen,
    }
    if said := "; ".join(what + _listed(names) for what, names in problems.items() if names):
        raise CheckpointError(
            f"its tensors are not those of the PromptIR that their shapes suggest: {said}; {_ADVICE}"
        )


def _agreed(inferred: PromptIRConfig, text: str) -> PromptIRConfig:
    """The inferred config with the exact ffn_expansion of the one that a safetensors file states; they must agree."""
    try:
        stated = PromptIRConfig.from_dict(json.loads(text))
        widths = [stage.inputs for stage in stages(inferred) if stage.depth]
        if all(int(c * stated.ffn_expansion) == int(c * inferred.ffn_expansion) for c in widths):
            inferred = replace(
                inferred, ffn_expansion=stated.ffn_expansion
            )  # many factors give the same widths
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(
            f"the config in its metadata is no PromptIR's ({error}); correct or remove it"
        ) from error
    for name in (f.name for f in fields(inferred)):
        if (said := getattr(stated, name)) != (found := getattr(inferred, name)):
            raise CheckpointError(
                f"the config in its metadata says {name} {said}, its tensors {found}; correct or remove the config"
            )
    return inferred


def _weight(name: str, tensor: Tensor, mask: Tensor | None) -> Tensor:
    """A float32 copy, masked; a copy because the file's tensors may share memory with each other or the disk."""
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


def _size(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def _listed(names: Iterable[str], most: int = 5) -> str:
    first = list(names)
    rest = len(first) - most
    return ", ".join(first[:most]) + (f" and {rest} more" if rest > 0 else "")
