"""The list of stages and layers says the same as the network that is built from it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mirl_sparse.architectures.promptir import (
    Kind,
    Part,
    PromptIR,
    PromptIRConfig,
    TransformerBlock,
    layers,
    stages,
    unused_weights,
)

CONFIGS = {
    "published": PromptIRConfig(),
    "small": PromptIRConfig(
        dim=8,
        num_blocks=(1, 2, 3, 1),
        num_refinement_blocks=2,
        heads=(1, 2, 4, 4),
        prompt_dims=(4, 8, 20),
        prompt_sizes=(4, 3, 2),
    ),
    "without unused layers": PromptIRConfig(unused_layers=False),
    "half resolution": PromptIRConfig(unshuffle=2),
}


def built(config: PromptIRConfig) -> PromptIR:
    with torch.device("meta"):
        return PromptIR(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_those_of_the_network_in_its_order(name):
    network = built(CONFIGS[name])
    modules = [key for key, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert [layer.name for layer in layers(CONFIGS[name])] == modules


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_say_what_a_layer_is(name):
    network = built(CONFIGS[name])
    for layer in layers(CONFIGS[name]):
        module = network.get_submodule(layer.name)
        depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
        assert depthwise == (layer.part in (Part.QKV_TAPS, Part.GATE_TAPS))
        assert isinstance(module, nn.Linear) == (layer.part is Part.PROMPT_WEIGHTS)
        assert ("1x1" in layer.part.value) == (module.weight.shape[2:] == (1, 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_are_those_of_the_network_in_its_order(name):
    network = built(CONFIGS[name])
    blocks = [key for key, m in network.named_modules() if isinstance(m, TransformerBlock)]
    assert [block for stage in stages(CONFIGS[name]) for block in stage.blocks] == blocks


@pytest.mark.parametrize("name", CONFIGS)
def test_each_stage_runs_at_its_level_on_its_channels(name):
    network, config = built(CONFIGS[name]), CONFIGS[name]
    seen = {}
    for stage in stages(config):
        if stage.kind is not Kind.OUTPUT:  # the network calls its op

            def record(module, arguments, name=stage.name):
                seen[name] = tuple(arguments[0].shape)

            network.get_submodule(stage.name).register_forward_pre_hook(record)
    network(torch.empty(1, 3, 64, 64, device="meta"))
    used = [stage for stage in stages(config) if stage.kind not in (Kind.OUTPUT, Kind.UNUSED)]
    want = {stage.name: (1, stage.inputs, 64 >> stage.level, 64 >> stage.level) for stage in used}
    assert seen == want | {"patch_embed": (1, 3, 64, 64)}  # which unshuffles the image itself


def test_unused_weights_are_what_the_two_networks_differ_in():
    config = CONFIGS["small"]
    bare = replace(config, unused_layers=False)
    assert unused_weights(config) == PromptIR.shapes(config).keys() - PromptIR.shapes(bare).keys()
    assert len(unused_weights(config)) == 6
    assert unused_weights(bare) == frozenset()
