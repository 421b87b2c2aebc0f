"""Find the networks in a file: where tensors have a PromptIR's names, whatever comes before these.

Of other networks the names are not known: `find_state_dicts` takes what wrappers may put before them away.

Trainers put a network below any name (``net.``, ``netG.module.``, ``_fsdp_wrapped_module.``), beside losses,
metrics and counters, and keep an average of its weights beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from mirl_sparse.architectures.promptir.detection import SIGNATURE
from mirl_sparse.choices import Weights
from mirl_sparse.errors import FileContentError

# Names that wrappers insert, also in the middle of a name (torch.compile, FullyShardedDataParallel).
_INSERTED = frozenset({"_orig_mod", "_fsdp_wrapped_module"})
# Where trainers keep the weights, in the order in which they are tried.
CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "params",
    "model",
    "network",
    "net",
    "net_g",
    "netG",
    "generator",
    "module",
)
# Words in the names of places where trainers keep averages, and masks.
_AVERAGE = frozenset(("ema", "ewma", "avg", "average", "averaged", "swa", "shadow", "teacher", "polyak"))
_MASK = frozenset(("mask", "masks"))
# Where Lightning's WeightAveraging keeps an average, it is the state_dict.
_LIGHTNING_AVERAGING = {"averaging_state", "current_model_state"}
_PARAMETRIZED_MASK = re.compile(r"\d+\.mask")
_MOST_NETWORKS = 16  # in one mapping: a hostile file may name millions
# The others are those of torch.nn.utils: prune and weight_norm.
_SIGNATURES = (SIGNATURE, f"{SIGNATURE}_orig", f"{SIGNATURE}_v")
# Of weight_norm and of spectral_norm.
_PARAMETRIZED_NORM = {"original0": "g", "original1": "v", "0._u": "u", "0._v": "v"}


@dataclass(frozen=True)
class Candidate:
    """Hold the tensors of one place in a file that may be a network.

    Attributes:
        where: The dotted path of the mapping that they lie in; empty for the file itself.
        prefix: What their names begin with there; empty, or it ends with a dot.
        tensors: By the names behind the prefix, without what wrappers insert.
        stored_as: The names in the file, by those.
        has_more: Whether the mapping has tensors of other prefixes.
        is_average: Whether the weights are an average over a training run.
    """

    where: str
    prefix: str
    tensors: Mapping[str, Tensor]
    stored_as: Mapping[str, str]
    has_more: bool
    is_average: bool

    def __str__(self) -> str:
        return repr(f"{self.where}.{self.prefix}".strip("."))


def find_candidates(content: Mapping[object, object], weights: Weights) -> list[Candidate]:
    """Return the places where a PromptIR may be, the preferred one first.

    Averages come first, unless raw weights are asked for. Then those that lie less deep, then by
    `CONTAINERS`, then in the file's own order.

    Args:
        content: Of a file.
        weights: Which of them are wanted.

    Raises:
        FileContentError: There are some, but none of the wanted kind, or two tensors have one name.
    """
    every = _candidates(content, lambda names: _prefixes(names, _SIGNATURES))
    if network := next((c for c in every if not c.is_average), None):
        every += _unnamed_averages(content, network)
    return _wanted(every, weights)


def find_state_dicts(content: Mapping[object, object], weights: Weights) -> list[Candidate]:
    """Return the places where a network of any architecture may be, in the order of `find_candidates`.

    Args:
        content: Of a file.
        weights: Which of them are wanted.

    Raises:
        FileContentError: As by `find_candidates`.
    """
    return _wanted(_candidates(content, _wrappings), weights)


def _candidates(
    content: Mapping[object, object], prefixes: Callable[[Iterable[str]], list[str]]
) -> list[Candidate]:
    every = [c for where, mapping in mappings(content) for c in _in_mapping(where, mapping, prefixes)]
    if content.keys() >= _LIGHTNING_AVERAGING:
        every = [replace(c, is_average=True) if c.where == "state_dict" else c for c in every]
    return every


def _wanted(every: list[Candidate], weights: Weights) -> list[Candidate]:
    wanted = {
        Weights.AUTO: sorted(every, key=lambda c: not c.is_average),
        Weights.AVERAGED: [c for c in every if c.is_average],
        Weights.RAW: [c for c in every if not c.is_average],
    }[weights]
    if every and not wanted:
        raise FileContentError(f"holds no {weights} weights; expected some, so choose other --weights")
    return wanted


def _unnamed_averages(content: Mapping[object, object], network: Candidate) -> Iterator[Candidate]:
    """Yield the averages of a network's parameters that are kept without their names.

    torch_ema and diffusers list them in order, and LitEma of latent-diffusion leaves the dots out.
    """
    masks = {name: tensor for name, tensor in network.tensors.items() if name.endswith("_mask")}
    names = [name for name in network.tensors if name not in masks]
    for where, mapping in mappings(content):
        tensors = {key: value for key, value in mapping.items() if isinstance(value, Tensor)}
        is_list = set(tensors) == set(range(len(tensors) or 1))
        if is_list and _AVERAGE & _words(where.rpartition(".")[2]):
            average = masks | dict(zip(names, tensors.values(), strict=False))
            yield Candidate(where, "", average, {}, False, True)
        for prefix in _prefixes(map(str, tensors), [x.replace(".", "") for x in _SIGNATURES]):
            stored_as = {n: flat for n in names if (flat := prefix + n.replace(".", "")) in tensors}
            average = masks | {name: tensors[flat] for name, flat in stored_as.items()}
            yield Candidate(where, prefix, average, stored_as, True, True)


def with_masks(candidate: Candidate, content: Mapping[object, object]) -> Candidate:
    """Return a candidate with the masks that a file keeps in a mapping of their own, such as "masks".

    Args:
        candidate: The weights.
        content: Of the file.

    Returns:
        The candidate; ``x`` is ``x_orig`` and ``x_mask`` where there is a mask of x.

    Raises:
        FileContentError: A mask belongs to no tensor of the file, or there are several sets of masks.
    """
    sets = dict(_mask_sets(candidate, content))
    if not sets:
        return candidate
    if len(sets) > 1:
        raise FileContentError(
            f"holds masks under {' and '.join(map(repr, sets))}; expected one set, so remove the others"
        )
    [(where, stored)] = sets.items()
    beside = {_plain(str(k)) for place, m in mappings(content) if place == candidate.where for k in m}
    masks: dict[str, Tensor] = {}
    for key, mask in stored.items():
        plain = _plain(key).removesuffix(".mask").removesuffix("_mask")
        name = plain.removeprefix(candidate.prefix)
        if name in candidate.tensors and name not in masks:
            masks[name] = mask
        elif name in candidate.tensors or plain not in beside:  # else it is another network's
            raise _unmatched(where, key)
    if not masks:
        raise _unmatched(where, next(iter(stored)))
    tensors = {name: t for name, t in candidate.tensors.items() if name not in masks}
    for name, mask in masks.items():
        tensors |= {f"{name}_orig": candidate.tensors[name], f"{name}_mask": mask}
    return replace(candidate, tensors=tensors)


def _unmatched(where: str, mask: str) -> FileContentError:
    return FileContentError(
        f"the masks under {where!r} name no weight of the network, such as {mask or 'a tensor'};"
        " expected masks by their weights' names, one for each, so save them so, or remove them"
    )


def _mask_sets(
    candidate: Candidate, content: Mapping[object, object]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the places whose names speak of masks, and the tensors there and below, by their dotted paths."""
    places: list[str] = []
    for where, mapping in mappings(content):
        if any(f"{where}.".startswith(f"{place}.") for place in places):
            continue
        for key, value in mapping.items():
            place = f"{where}.{key}" if where else str(key)
            if not _MASK & _words(str(key)) or f"{candidate.where}.".startswith(f"{place}."):
                continue
            if below := _tensors_below(value, is_buffer=bool(where) or "." in place):
                places.append(place)
                yield place, below


def _tensors_below(value: object, is_buffer: bool) -> dict[str, Tensor]:
    """Return the tensors in a mapping or list by their dotted paths; one alone, unless it is a buffer."""
    if isinstance(value, Tensor):
        return {} if is_buffer else {"": value}
    return {
        f"{where}.{key}" if where else str(key): tensor
        for where, mapping in mappings(_as_mapping(value) or {})
        for key, tensor in mapping.items()
        if isinstance(tensor, Tensor)
    }


def mappings(content: Mapping[object, object]) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield all mappings and their dotted paths, breadth first; lists map places to what they hold."""
    queue: list[tuple[str, Mapping[object, object]]] = [("", content)]
    seen = {id(content)}
    for where, mapping in queue:  # grows while it is read
        yield where, mapping
        for key in sorted(mapping, key=_rank):
            child = _as_mapping(mapping[key])
            if child is not None and id(mapping[key]) not in seen:  # a pickle may contain itself
                seen.add(id(mapping[key]))
                queue.append((f"{where}.{key}" if where else str(key), child))


def _as_mapping(value: object) -> Mapping[object, object] | None:
    """Return a mapping, or a list that holds mappings or tensors as one; None of anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, list, tuple, Tensor)) for v in value):
        return dict(enumerate(value))
    return None


def _rank(key: object) -> int:
    return CONTAINERS.index(key) if isinstance(key, str) and key in CONTAINERS else len(CONTAINERS)


def _words(name: str) -> set[str]:
    """Return the words of a name in lower case, without digits: of modelEMA_2 "model" and "ema"."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _prefixes(names: Iterable[str], signatures: Sequence[str]) -> list[str]:
    """Return what comes before a PromptIR's patch embedding, each once."""
    prefixes = [n.removesuffix(s) for n in names for s in signatures if n.endswith(s)]
    return list(dict.fromkeys(prefixes))[:_MOST_NETWORKS]


def _wrappings(names: Iterable[str]) -> list[str]:
    """Return "" and what wrappers may have put before the names, such as "module." and "module.net_g."."""
    names = list(names)
    prefixes = [""] if names else []
    for prefix in prefixes:  # grows while it is read
        inner = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        first = dict.fromkeys(name.partition(".")[0] if "." in name else None for name in inner)
        inside = [f"{prefix}{part}." for part in first if part and (len(first) == 1 or _is_wrapper(part))]
        prefixes += inside[: _MOST_NETWORKS - len(prefixes)]
    return prefixes


def _is_wrapper(part: str) -> bool:
    return part in CONTAINERS or bool(_AVERAGE & _words(part))


def _in_mapping(
    where: str, mapping: Mapping[object, object], prefixes: Callable[[Iterable[str]], list[str]]
) -> Iterator[Candidate]:
    """Yield a candidate for each of the prefixes that the names in a mapping have."""
    names = {k: _plain(k) for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Tensor)}
    every = set(names.values())
    for prefix in prefixes(names.values()):
        if prefix and not prefix.endswith("."):
            continue
        stored_as: dict[str, str] = {}
        for stored, name in names.items():
            if name.startswith(prefix):
                inner = name.removeprefix(prefix)
                if (other := stored_as.setdefault(inner, stored)) != stored:
                    raise FileContentError(
                        f"{other} and {stored} both name {inner}; expected one network, so save only one"
                    )
        tensors = {inner: mapping[stored] for inner, stored in stored_as.items()}
        # torch's AveragedModel counts beside the module that it averages.
        counted = prefix.endswith("module.") and f"{prefix.removesuffix('module.')}n_averaged" in every
        is_average = counted or bool(_AVERAGE & _words(f"{where}.{prefix}"))
        yield Candidate(where, prefix, tensors, stored_as, len(stored_as) < len(names), is_average)  # type: ignore[arg-type]


def _plain(name: str) -> str:
    """Return a name without what wrappers insert, and with torch's names of masked weights."""
    plain = ".".join(part for part in name.split(".") if part not in _INSERTED)
    module, is_parametrized, rest = plain.rpartition(".parametrizations.")
    parameter, _, role = rest.partition(".")
    if is_parametrized and role == "original":
        return f"{module}.{parameter}_orig"
    if is_parametrized and role in _PARAMETRIZED_NORM:
        return f"{module}.{parameter}_{_PARAMETRIZED_NORM[role]}"
    if is_parametrized and _PARAMETRIZED_MASK.fullmatch(role):
        return f"{module}.{parameter}_mask"
    return plain
