"""Recognise a PromptIR by the names and shapes of its tensors, so that any width and depth loads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from mirl_sparse.architectures.promptir.config import ConfigError, PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.architectures.promptir.topology import Kind, Stage, layers, stages, unet, unused_weights
from mirl_sparse.errors import FileContentError

_PUBLISHED = PromptIRConfig()  # the names of stages are the same in every config
SIGNATURE = next(x.weight for x in layers(_PUBLISHED) if x.stage.kind is Kind.EMBED)
"""The tensor by which a PromptIR is recognised."""
ADVICE = "give the whole checkpoint of one PromptIR or MIR-L network"
_PROJECT_IN = ".ffn.project_in.weight"


class DetectionError(FileContentError):
    """Report tensors that form no PromptIR; the message is one line for the user."""


def infer_config(state: Mapping[str, Tensor]) -> PromptIRConfig:
    """Return the config of a state dict with published names.

    Only names and shapes are read, so meta tensors serve. Not every tensor is looked at: `check_shapes`
    compares them all with the network of the result.

    Args:
        state: Tensors by published name.

    Raises:
        DetectionError: A tensor that is needed is missing or has the wrong number of dimensions, stages
            disagree, or no network has these widths.
    """
    net = unet(_PUBLISHED)
    depth = {s.name: _block_count(state, s) for s in stages(_PUBLISHED) if s.kind is Kind.BLOCKS}
    for down, up in zip(net.encoder, reversed(net.decoder), strict=True):
        encoder, decoder = down.blocks.name, up.blocks.name
        if depth[encoder] != depth[decoder]:
            raise DetectionError(
                f"{encoder} has {depth[encoder]} block(s) and {decoder} {depth[decoder]};"
                f" expected equal counts; {ADVICE}"
            )
    levels = [*(down.blocks for down in net.encoder), net.latent]
    heads = [_shape(state, f"{stage.name}.0.attn.temperature", 3)[0] for stage in levels]
    prompts = [_shape(state, f"{up.prompt.name}.prompt_param", 5) for up in reversed(net.decoder)]
    try:
        return PromptIRConfig(
            dim=_shape(state, SIGNATURE, 4)[0],
            num_blocks=tuple(depth[stage.name] for stage in levels),  # type: ignore[arg-type]
            num_refinement_blocks=depth[net.refinement.name],
            heads=tuple(heads),  # type: ignore[arg-type]
            ffn_expansion=_expansion(state),
            prompt_dims=tuple(shape[2] for shape in prompts),  # type: ignore[arg-type]
            prompt_sizes=tuple(shape[3] for shape in prompts),  # type: ignore[arg-type]
            prompt_count=prompts[0][1],
            unused_layers=not unused_weights(_PUBLISHED).isdisjoint(state),
            unshuffle=max(1, math.isqrt(_shape(state, SIGNATURE, 4)[1] // 3)),
        )
    except ConfigError as error:
        raise DetectionError(f"the shapes of the tensors describe no PromptIR: {error}; {ADVICE}") from error


def check_shapes(state: Mapping[str, Tensor], config: PromptIRConfig) -> list[str]:
    """Return the names of all parameters, in stored order, if the tensors are those of the config's network.

    Args:
        state: Tensors by published name; only names and shapes are read.
        config: As `infer_config` returns it.

    Raises:
        DetectionError: Tensors are missing, are not of the network or have another shape, or the config's
            network has sizes that overflow.
    """
    try:
        shapes = PromptIR.shapes(config)
    except RuntimeError as error:  # sizes that overflow
        raise DetectionError(f"the shapes of the tensors describe no PromptIR: {error}; {ADVICE}") from error
    misshapen = [
        f"{name} is {shape_text(state[name].shape)} (expected {shape_text(shape)})"
        for name, shape in shapes.items()
        if name in state and state[name].shape != shape
    ]
    problems = {
        "missing ": [name for name in shapes if name not in state],
        "not of the network ": [name for name in state if name not in shapes],
        "": misshapen,
    }
    if text := "; ".join(what + listed(names) for what, names in problems.items() if names):
        raise DetectionError(
            f"its tensors are not those of the PromptIR that their shapes suggest: {text}; {ADVICE}"
        )
    return list(shapes)


def _shape(state: Mapping[str, Tensor], name: str, dims: int) -> torch.Size:
    if name not in state:
        raise DetectionError(f"{name} is missing; {ADVICE}")
    shape = state[name].shape
    if len(shape) != dims:
        raise DetectionError(f"{name} is {shape_text(shape)}; expected {dims} dimensions; {ADVICE}")
    return shape


def _block_count(state: Mapping[str, Tensor], stage: Stage) -> int:
    """Return how many blocks a stage has: their indices run from 0 without a gap."""
    # Indices are compared as text: a name may hold one of a billion, or of a million digits.
    indices = {name.split(".")[1] for name in state if name.startswith(f"{stage.name}.")}
    count = sum(index.isdecimal() for index in indices)
    if missing := [i for i in range(max(count, 1)) if str(i) not in indices]:
        raise DetectionError(
            f"{stage.name}.{missing[0]} is missing; expected blocks numbered from 0; {ADVICE}"
        )
    return count


def _expansion(state: Mapping[str, Tensor]) -> float:
    """Return the published ffn_expansion if it gives every hidden width, else the shortest decimal that does.

    A block of C channels and hidden width h = int(C * factor) leaves an interval of factors; the
    intervals are found in floating point, as int(100 * 2.3) is 229.
    """
    low, high = ("", 0.0), ("", math.inf)
    for name in state:
        if not name.endswith(_PROJECT_IN):
            continue
        rows, channels, *_ = _shape(state, name, 4)
        if rows < 2 or rows % 2 or channels < 1:
            raise DetectionError(
                f"{name} is {shape_text(state[name].shape)}; expected an even number of rows; {ADVICE}"
            )
        low = max(low, (name, _least_factor(channels, rows // 2)), key=lambda bound: bound[1])
        high = min(high, (name, _least_factor(channels, rows // 2 + 1)), key=lambda bound: bound[1])
    if low[1] >= high[1]:
        shapes = " and ".join(f"{name} ({shape_text(state[name].shape)})" for name, _ in (low, high))
        raise DetectionError(f"no one ffn_expansion gives the hidden widths of {shapes}; {ADVICE}")
    if low[1] <= _PUBLISHED.ffn_expansion < high[1]:
        return _PUBLISHED.ffn_expansion
    for digits in range(18):
        floor = math.floor(Fraction(low[1]) * 10**digits)
        for numerator in (floor, floor + 1):
            if low[1] <= (factor := float(f"{numerator}e-{digits}")) < high[1]:
                return factor
    return low[1]


def _least_factor(channels: int, hidden: int) -> float:
    """Return the smallest float for which int(channels * factor) reaches ``hidden``."""
    factor = hidden / channels  # a few steps away
    while int(channels * factor) >= hidden:
        factor = math.nextafter(factor, 0.0)
    while int(channels * factor) < hidden:
        factor = math.nextafter(factor, math.inf)
    return factor


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as messages show it.

    Examples:
        >>> shape_text((24, 8, 1, 1)), shape_text(())
        ('24x8x1x1', 'a scalar')
    """
    return "x".join(map(str, shape)) or "a scalar"


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return names as messages list them: the first ``most``, and how many more there are.

    Examples:
        >>> listed("abc", most=2)
        'a, b and 1 more'
    """
    first = list(names)
    rest = len(first) - most
    return ", ".join(first[:most]) + (f" and {rest} more" if rest > 0 else "")
