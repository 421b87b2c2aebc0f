"""Find the networks in a file: where tensors have a PromptIR's names, whatever comes before these.

Trainers put a network below any name (``net.``, ``netG.module.``, ``_fsdp_wrapped_module.``), beside losses,
metrics and counters, and keep an average of its weights beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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
    "generator",
    "module",
)
_AVERAGE = re.compile(r"(^|[._])(ema|ewma|avg|averaged?|swa|shadow|best)([._]|$)", re.IGNORECASE)
_PARAMETRIZED_MASK = re.compile(r"\d+\.mask")
_MOST_NETWORKS = 16  # in one mapping: a hostile file may name millions
# The others are those of torch.nn.utils: prune and weight_norm.
_SIGNATURES = (SIGNATURE, f"{SIGNATURE}_orig", f"{SIGNATURE}_v")
_MASKS = re.compile(r"(.*[._])?masks?", re.IGNORECASE)
_PARAMETRIZED_NORM = {"original0": "g", "original1": "v"}


@dataclass(frozen=True)
class Candidate:
    """Hold the tensors of one place in a file that may be a PromptIR.

    Attributes:
        where: The dotted path of the mapping that they lie in; empty for the file itself.
        prefix: What their names begin with there; empty, or it ends with a dot.
        tensors: By the names behind the prefix, without what wrappers insert.
        stored_as: The names in the file, by those.
        has_more: Whether the mapping has tensors of other prefixes.
    """

    where: str
    prefix: str
    tensors: Mapping[str, Tensor]
    stored_as: Mapping[str, str]
    has_more: bool

    @property
    def is_average(self) -> bool:
        """Return whether path or prefix say that the weights are an average, or the best of a run."""
        return _AVERAGE.search(f"{self.where}.{self.prefix}") is not None


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
    every = [c for where, mapping in mappings(content) for c in _in_mapping(where, mapping)]
    wanted = {
        Weights.AUTO: sorted(every, key=lambda c: not c.is_average),
        Weights.AVERAGED: [c for c in every if c.is_average],
        Weights.RAW: [c for c in every if not c.is_average],
    }[weights]
    if every and not wanted:
        raise FileContentError(f"holds no {weights} weights; expected some, so choose other --weights")
    return wanted


def with_masks(candidate: Candidate, content: Mapping[object, object]) -> Candidate:
    """Return a candidate with the masks that a file keeps in a mapping of their own, such as "masks".

    Args:
        candidate: The weights.
        content: Of the file.

    Returns:
        The candidate; ``x`` is ``x_orig`` and ``x_mask`` where there is a mask of x.

    Raises:
        FileContentError: No mask of such a mapping belongs to a weight of the candidate.
    """
    for where, mapping in mappings(content):
        if not _MASKS.fullmatch(where):
            continue
        found = {
            _plain(key).removeprefix(candidate.prefix).removesuffix(".mask").removesuffix("_mask"): value
            for key, value in mapping.items()
            if isinstance(key, str) and isinstance(value, Tensor)
        }
        masks = {name: mask for name, mask in found.items() if name in candidate.tensors}
        if found and not masks:
            raise FileContentError(
                f"the masks under {where!r} name no weight of the network, such as {next(iter(found))};"
                " expected masks by its weights' names, so save them so, or remove them"
            )
        if masks:
            tensors = {name: t for name, t in candidate.tensors.items() if name not in masks}
            for name, mask in masks.items():
                tensors |= {f"{name}_orig": candidate.tensors[name], f"{name}_mask": mask}
            return replace(candidate, tensors=tensors)
    return candidate


def mappings(content: Mapping[object, object]) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield all mappings and their dotted paths, breadth first."""
    queue: list[tuple[str, Mapping[object, object]]] = [("", content)]
    seen = {id(content)}
    for where, mapping in queue:  # grows while it is read
        yield where, mapping
        for key in sorted(mapping, key=_rank):
            child = mapping[key]
            if isinstance(child, Mapping) and id(child) not in seen:  # a pickle may contain itself
                seen.add(id(child))
                queue.append((f"{where}.{key}" if where else str(key), child))


def _rank(key: object) -> int:
    return CONTAINERS.index(key) if isinstance(key, str) and key in CONTAINERS else len(CONTAINERS)


def _in_mapping(where: str, mapping: Mapping[object, object]) -> Iterator[Candidate]:
    """Yield a candidate for each prefix that a PromptIR's patch embedding has in a mapping."""
    names = {k: _plain(k) for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Tensor)}
    prefixes = [
        name.removesuffix(signature)
        for name in names.values()
        for signature in _SIGNATURES
        if name == signature or name.endswith(f".{signature}")
    ]
    for prefix in list(dict.fromkeys(prefixes))[:_MOST_NETWORKS]:
        stored_as: dict[str, str] = {}
        for stored, name in names.items():
            if name.startswith(prefix):
                inner = name.removeprefix(prefix)
                if (other := stored_as.setdefault(inner, stored)) != stored:
                    raise FileContentError(
                        f"{other} and {stored} both name {inner}; expected one network, so save only one"
                    )
        tensors = {inner: mapping[stored] for inner, stored in stored_as.items()}
        yield Candidate(where, prefix, tensors, stored_as, len(stored_as) < len(names))  # type: ignore[arg-type]


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
