"""Read what torch.nn.utils stores instead of a weight ``x``, and remove its masks.

Its prune stores ``x_orig`` and ``x_mask``, its weight_norm ``x_g`` and ``x_v``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from mirl_sparse.architectures.promptir.detection import shape_text
from mirl_sparse.errors import FileContentError

_NORMED = re.compile(r"(.+weight)_(g|v)")
_PAIR = re.compile(r"(.+)_(orig|mask)")


def remove_pruning(module: nn.Module) -> bool:
    """Make weights of a module that torch.nn.utils.prune masks into plain weights again.

    Args:
        module: Changed in place, with all modules in it.

    Returns:
        Whether any weight was masked.
    """
    masked = [
        (m, hook._tensor_name)
        for m in module.modules()
        for hook in m._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]
    for m, name in masked:
        prune.remove(m, name)
    return bool(masked)


def merge_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in which weights of torch.nn.utils.weight_norm are plain weights.

    Args:
        state: Plain weights, and pairs ``x_g`` (lengths, (O, 1, ...)) and ``x_v`` (directions, (O, ...)).

    Raises:
        FileContentError: Half of a pair is missing, the two do not belong together, or spectral_norm stored
            the weight.
    """
    merged = {name: tensor for name, tensor in state.items() if not _NORMED.fullmatch(name)}
    for name in dict.fromkeys(pair[1] for pair in map(_NORMED.fullmatch, state) if pair):
        if f"{name}_u" in state:
            raise FileContentError(
                f"{name} is stored by spectral_norm; expected a plain weight, so remove that from the network"
                " (torch.nn.utils.remove_spectral_norm) and save it again"
            )
        lengths, directions = state.get(f"{name}_g"), state.get(f"{name}_v")
        if lengths is None or directions is None:
            raise FileContentError(
                f"{name}_g or {name}_v is missing; expected both, as weight_norm stores them"
            )
        expected = (*directions.shape[:1], *(1 for _ in directions.shape[1:]))
        if not directions.is_floating_point() or lengths.shape != expected:
            raise FileContentError(
                f"{name}_g is {shape_text(lengths.shape)}; expected floating-point {shape_text(expected)},"
                " as weight_norm stores it"
            )
        merged[name] = torch._weight_norm(directions.float(), lengths.float(), 0)
    return merged


def split_masks(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights and the masks of a state dict, both under the weights' names.

    Args:
        state: Plain weights, and pairs ``x_orig`` and ``x_mask``.

    Returns:
        All weights, not masked yet, and the masks of those that have one.

    Raises:
        FileContentError: Half of a pair is missing, the two differ in shape, or the weight is stored beside
            them.
    """
    weights: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for key, tensor in state.items():
        pair = _PAIR.fullmatch(key)
        if pair is None:
            weights[key] = tensor
            continue
        name, role = pair.groups()
        partner = f"{name}_{'mask' if role == 'orig' else 'orig'}"
        if partner not in state:
            raise FileContentError(
                f"{key} has no {partner}; expected both, as torch.nn.utils.prune stores them"
            )
        if name in state:
            raise FileContentError(
                f"{name} is stored beside {key}; expected one of them, so save the network again"
            )
        if state[partner].shape != tensor.shape:
            raise FileContentError(
                f"{key} is {shape_text(tensor.shape)} and {partner} {shape_text(state[partner].shape)};"
                " expected equal shapes"
            )
        (weights if role == "orig" else masks)[name] = tensor
    return weights, masks
