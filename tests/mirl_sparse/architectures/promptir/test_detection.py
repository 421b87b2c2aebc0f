"""The config of a network is inferred from the names and shapes of its tensors."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from configs import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mirl_sparse.architectures.promptir import (
    ConfigError,
    DetectionError,
    PromptIR,
    PromptIRConfig,
    infer_config,
)
from mirl_sparse.architectures.promptir.detection import check_shapes


def shapes_of(config: PromptIRConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return PromptIR(config).state_dict()


CONFIGS = {
    "published": PromptIRConfig(),
    "small": SMALL,
    "tiny": PromptIRConfig(
        dim=2, num_blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), prompt_dims=(2, 2, 2)
    ),  # 2.63 fits too
    "wide": PromptIRConfig(dim=64, num_blocks=(1, 1, 1, 1), num_refinement_blocks=2),
    "deep": PromptIRConfig(dim=8, num_blocks=(3, 2, 11, 1), num_refinement_blocks=12),
    "heads": PromptIRConfig(dim=24, num_blocks=(1, 1, 1, 1), heads=(2, 3, 4, 6), prompt_dims=(8, 4, 16)),
    "prompts": PromptIRConfig(
        dim=16, num_blocks=(1, 1, 1, 1), prompt_dims=(20, 36, 52), prompt_sizes=(7, 5, 9), prompt_count=1
    ),
    "bare": replace(SMALL, unused_layers=False),
    "half resolution": replace(SMALL, unshuffle=2),
    "expansion 2": replace(SMALL, dim=48, ffn_expansion=2.0),
    "expansion 8/3": replace(SMALL, dim=48, ffn_expansion=2.67),
    "expansion 1.33": replace(SMALL, dim=48, ffn_expansion=1.33),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_inferred_from_shapes_alone(name: str) -> None:
    assert infer_config(shapes_of(CONFIGS[name])) == CONFIGS[name]


@st.composite
def configs(draw: st.DrawFn) -> PromptIRConfig:
    heads = draw(st.tuples(*[st.sampled_from([1, 2, 4])] * 4))
    multiples = st.integers(2, 6).map(lambda n: n * heads[2])
    try:
        return PromptIRConfig(
            dim=draw(st.sampled_from([4, 12, 20, 48, 100])),
            num_blocks=draw(st.tuples(*[st.integers(1, 2)] * 4)),
            num_refinement_blocks=draw(st.integers(1, 2)),
            heads=heads,
            ffn_expansion=draw(st.floats(0.3, 4) | st.sampled_from([2.3, 0.29, 8 / 3, math.nextafter(3, 0)])),
            prompt_dims=draw(st.tuples(*[multiples] * 3)),
            prompt_sizes=draw(st.tuples(*[st.integers(1, 5)] * 3)),
            prompt_count=draw(st.integers(1, 6)),
            unused_layers=draw(st.booleans()),
        )
    except ConfigError:  # heads that do not divide the prompts' widths
        return replace(SMALL, ffn_expansion=draw(st.floats(0.3, 4)))


@settings(max_examples=40)
@given(configs())
def test_any_config_is_inferred(config: PromptIRConfig) -> None:
    shapes = shapes_of(config)
    inferred = infer_config(shapes)
    assert replace(inferred, ffn_expansion=config.ffn_expansion) == config
    assert {k: v.shape for k, v in shapes_of(inferred).items()} == {k: v.shape for k, v in shapes.items()}


WITHOUT_HIDDEN = {k: v for k, v in shapes_of(SMALL).items() if not k.endswith("ffn.project_in.weight")}


@settings(max_examples=300)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=9), st.floats(1, 5) | st.integers(100, 500))
def test_expansion_reproduces_every_hidden_width(channels: list[int], given_factor: float) -> None:
    factor = (
        given_factor / 100 if isinstance(given_factor, int) else given_factor
    )  # two decimals: often on an edge
    state = dict(WITHOUT_HIDDEN)
    for i, c in enumerate(channels):
        shape = (2 * int(c * factor), c, 1, 1)
        state[f"extra{i}.ffn.project_in.weight"] = torch.empty(shape, device="meta")
    inferred = infer_config(state).ffn_expansion
    assert [int(c * inferred) for c in channels] == [int(c * factor) for c in channels]
    assert len(repr(inferred)) <= max(
        len(repr(float(factor))), 4
    )  # no longer than the one that was given, or 2.66


def test_inference_alone_refuses_without_a_path() -> None:
    with pytest.raises(DetectionError, match=r"^encoder_level1.0 is missing; "):
        infer_config({})


def test_a_message_about_a_hostile_name_is_printable() -> None:
    state = dict(shapes_of(SMALL)) | {"x\n\x1b[2J.ffn.project_in.weight": torch.empty(1, 4, 1, 1)}
    with pytest.raises(DetectionError, match=r"^x\\n\\x1b\[2J") as caught:
        infer_config(state)
    assert str(caught.value).isprintable()


def test_shapes_are_compared_with_those_of_the_config() -> None:
    state = dict(shapes_of(SMALL))
    assert check_shapes(state, SMALL) == list(state)
    state["output.weight"] = torch.empty(3, 9, 3, 3, device="meta")
    state["extra"] = state.pop("patch_embed.proj.weight")
    with pytest.raises(DetectionError) as caught:
        check_shapes(state, SMALL)
    for part in (
        "missing patch_embed.proj.weight",
        "not of the network extra",
        "output.weight is 3x9x3x3 (expected 3x8x3x3)",
    ):
        assert part in str(caught.value)
