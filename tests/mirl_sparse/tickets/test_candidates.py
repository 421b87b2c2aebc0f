"""A network is found wherever trainers put it, and an average is preferred."""

from __future__ import annotations

import argparse
import collections
import pathlib
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from configs import SMALL
from torch import Tensor, nn

from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.tickets import CheckpointError, read_checkpoint

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> PromptIR:
    torch.manual_seed(0)
    return PromptIR(SMALL).eval()


@pytest.fixture
def state(network: PromptIR) -> State:
    return {name: value.clone() for name, value in network.state_dict().items()}


def below(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def shifted(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


def read(tmp_path: pathlib.Path, content: object, weights: str = "auto") -> tuple[State, str]:
    torch.save(content, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt", weights)
    return checkpoint.state, checkpoint.source


def assert_same(got: State, want: State) -> None:
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize(
    "prefix",
    [
        "generator.",
        "netG.module.",
        "restormer.",
        "_fsdp_wrapped_module.",
        "a.b.c.",
        "model._fsdp_wrapped_module.",
    ],
)
def test_any_prefix_is_stripped(prefix, state, tmp_path):
    assert_same(read(tmp_path, {"state_dict": below(prefix, state)})[0], state)


@pytest.mark.parametrize(
    "beside",
    [
        {"loss_fn.vgg.0.weight": torch.rand(8, 3, 3, 3), "loss_fn.vgg.0.bias": torch.rand(8)},
        {"psnr.sum_squared_error": torch.tensor(0.0)},
        {"net.total_ops": torch.zeros(1), "net.latent.0.total_params": torch.zeros(1)},
    ],
    ids=["a loss", "a metric", "counters"],
)
def test_tensors_beside_the_network_are_left_out_and_said(beside, state, tmp_path):
    got, source = read(tmp_path, {"state_dict": below("net.", state) | beside})
    assert_same(got, state)
    assert got.keys() == state.keys()
    assert source == "nested state dict under 'state_dict', its tensors below 'net.'"


AVERAGES: dict[str, Callable[[State, State], object]] = {
    "beside, by EMA": lambda raw, average: {"model": raw, "EMA": average},
    "beside, by model_EMA": lambda raw, average: {"model": raw, "model_EMA": average},
    "deeper": lambda raw, average: {"model": raw, "ema": {"decay": 0.999, "shadow": average}},
    "torch's swa_utils": lambda raw, average: {
        "state_dict": raw,
        "averaged_model": below("module.", average),
    },
    "shadow": lambda raw, average: {"model": raw, "shadow": average},
    "mean teacher": lambda raw, average: {"student": raw, "teacher": average},
    "polyak": lambda raw, average: {"model": raw, "polyak": average},
    "beside, by modelEMA": lambda raw, average: {"model": raw, "modelEMA": average},
    "beside, by ema0": lambda raw, average: {"model": raw, "ema0": average},
    "Lightning's WeightAveraging": lambda raw, average: {
        "state_dict": below("net.", average),
        "current_model_state": below("net.", raw),
        "averaging_state": {"n_averaged": torch.tensor(5)},
    },
    "torch's AveragedModel, by another name": lambda raw, average: {
        "model": raw,
        "smooth": {"n_averaged": torch.tensor(5), **below("module.", average)},
    },
    "torch_ema": lambda raw, average: {
        "state_dict": below("net.", raw),
        "ema": {"decay": 0.999, "shadow_params": list(average.values()), "collected_params": None},
    },
    "LitEma": lambda raw, average: {
        "state_dict": {
            **below("model.", raw),
            **{f"model_ema.{name.replace('.', '')}": value for name, value in average.items()},
            "model_ema.decay": torch.tensor(0.999),
        }
    },
    "ema_pytorch": lambda raw, average: {**below("online_model.", raw), **below("ema_model.", average)},
    "Lightning": lambda raw, average: {"state_dict": {**below("net.", raw), **below("ema_net.", average)}},
    "Lightning, inside": lambda raw, average: {
        "state_dict": {**below("net.", raw), **below("ema.module.", average)}
    },
}


@pytest.mark.parametrize("form", AVERAGES)
def test_an_average_is_preferred_and_said(form, state, tmp_path):
    content = AVERAGES[form](shifted(state), state)
    got, source = read(tmp_path, content)
    assert_same(got, state)
    assert "averaged weights" in source
    assert_same(read(tmp_path, content, "averaged")[0], state)
    raw, source = read(tmp_path, content, "raw")
    assert_same(raw, shifted(state))
    assert "averaged" not in source


@pytest.mark.parametrize("form", ["beside, by EMA", "torch_ema", "LitEma"])
def test_an_average_that_is_not_whole_gives_way_and_is_named(form, state, tmp_path):
    part = {name: value for name, value in state.items() if not name.startswith("output")}
    got, source = read(tmp_path, AVERAGES[form](state, part))
    assert_same(got, state)
    assert "; averaged weights under '" in source
    with pytest.raises(CheckpointError, match="output"):
        read(tmp_path, AVERAGES[form](state, part), "averaged")


def test_a_listed_average_of_masked_weights_is_masked(state, tmp_path):
    masks = {name: (torch.rand(w.shape) < 0.3).float() for name, w in state.items() if w.ndim > 1}
    raw = {}
    for name, weight in state.items():
        raw |= {f"{name}_orig": weight + 1, f"{name}_mask": masks[name]} if name in masks else {name: weight}
    got, source = read(tmp_path, {"model": raw, "ema": {"shadow_params": list(state.values())}})
    assert_same(got, {name: w * masks.get(name, 1) for name, w in state.items()})
    assert "averaged weights (masks applied)" in source


def test_an_average_alone_is_said(state, tmp_path):
    content = {"n_averaged": torch.tensor(7), **below("module.", state)}
    got, source = read(tmp_path, content, "averaged")
    assert_same(got, state)
    assert "averaged weights" in source
    with pytest.raises(CheckpointError, match="holds no raw weights"):
        read(tmp_path, content, "raw")


def test_the_best_weights_of_a_run_are_no_average(state, tmp_path):
    got, source = read(tmp_path, {"best": shifted(state), "state_dict": state})
    assert_same(got, state)
    assert "averaged" not in source
    got, source = read(tmp_path, {"best": state})
    assert "averaged" not in source


@pytest.mark.parametrize("content", [lambda s: {"models": [s, shifted(s)]}, lambda s: [s], lambda s: (s, {})])
def test_networks_in_a_list_are_read(content, state, tmp_path):
    assert_same(read(tmp_path, content(state))[0], state)


def test_weights_that_are_not_there_are_refused(state, tmp_path):
    with pytest.raises(CheckpointError, match="holds no averaged weights; expected some, so choose other"):
        read(tmp_path, {"model": state}, "averaged")


@pytest.mark.parametrize(
    "foreign",
    [
        argparse.Namespace(lr=1e-4, path=pathlib.Path("a")),
        np.float64(31.2),
        np.zeros(3),
        pathlib.Path("conf.yaml"),
        collections.defaultdict(list),
        types.SimpleNamespace(a=1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_beside_the_network_are_left_out_and_named(foreign, state, tmp_path):
    got, source = read(tmp_path, {"state_dict": state, "beside": foreign})
    assert_same(got, state)
    if "left out" not in source:  # PyTorch itself takes some of them
        torch.load(tmp_path / "a.pt", weights_only=True)


class Loud:
    """Says so when it is made, or set up, by a loader that runs what a file names."""

    heard: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.heard.append("made")

    def __setstate__(self, state: object) -> None:
        self.heard.append("set up")


def test_nothing_of_a_foreign_class_runs(state, tmp_path):
    loud = Loud()
    loud.note = 3
    Loud.heard.clear()
    got, source = read(tmp_path, {"state_dict": state, "beside": loud, "list": [loud, {"a": loud}]})
    assert_same(got, state)
    assert source.endswith("Loud")
    assert Loud.heard == []
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert Loud.heard == ["set up"]


def test_masks_of_a_parametrization_are_applied(network, state, tmp_path):
    class Masked(nn.Module):
        def __init__(self, mask: Tensor) -> None:
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.mask

    pruned = PromptIR(SMALL)
    pruned.load_state_dict(state)
    masks = {}
    for name, m in pruned.named_modules():
        if type(m) is nn.Conv2d:
            masks[f"{name}.weight"] = (torch.rand(m.weight.shape) < 0.5).float()
            nn.utils.parametrize.register_parametrization(m, "weight", Masked(masks[f"{name}.weight"]))
    got, source = read(tmp_path, pruned.state_dict())
    assert masks
    assert "masks applied" in source
    assert_same(got, {name: value * masks.get(name, 1) for name, value in state.items()})


def test_a_torchscript_archive_is_named(tmp_path):
    torch.jit.trace(nn.Conv2d(3, 3, 3), torch.rand(1, 3, 8, 8)).save(str(tmp_path / "a.pt"))
    with pytest.raises(CheckpointError, match="a TorchScript archive, which holds code"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_restormer_is_named(state, tmp_path):
    prompts = ("prompt", "noise", "reduce_noise", "chnl")
    with pytest.raises(CheckpointError, match="looks like a Restormer"):
        read(tmp_path, {"params": {k: v for k, v in state.items() if not k.startswith(prompts)}})


@pytest.mark.parametrize("where", ["masks", "mask", "pruning_mask", "mask_dict", "maskDict"])
@pytest.mark.parametrize("named", ["{}", "model.{}", "{}_mask", "{}.mask"])
def test_masks_in_a_mapping_of_their_own_are_applied(where, named, state, tmp_path):
    masks = {name: torch.rand(w.shape) < 0.3 for name, w in state.items() if w.ndim > 1}
    content = {"model": below("model.", state), where: {named.format(n): m for n, m in masks.items()}}
    got, source = read(tmp_path, content)
    assert_same(got, {name: w * masks.get(name, 1) for name, w in state.items()})
    assert source.endswith("(masks applied)")


def test_masks_that_belong_to_no_weight_or_do_not_fit_are_refused(state, tmp_path):
    with pytest.raises(CheckpointError, match="the masks under 'masks' name no weight of the network"):
        read(tmp_path, {"model": state, "masks": {"0": torch.ones(3)}})
    with pytest.raises(CheckpointError, match="expected equal shapes"):
        read(tmp_path, {"model": state, "masks": {"patch_embed.proj.weight": torch.ones(3)}})
    with pytest.raises(CheckpointError, match="holds other values than 0 and 1"):
        read(tmp_path, {"model": state, "masks": {n: w for n, w in state.items() if n.endswith("weight")}})


UNMATCHED: dict[str, Callable[[State], object]] = {
    "a list": lambda masks: {"masks": list(masks.values())},
    "rounds": lambda masks: {"masks": {"round0": masks, "round1": masks}},
    "a list of rounds": lambda masks: {"masks": [masks, masks]},
    "one vector": lambda masks: {"mask": torch.cat([m.flatten() for m in masks.values()])},
    "some by other names": lambda masks: {"masks": masks | {"x.weight": torch.ones(3)}},
    "some twice": lambda masks: {"masks": masks | below("model.", masks)},
    "a list of one's own": lambda masks: {"pruning": {"masks": list(masks.values())}},
}


@pytest.mark.parametrize("form", UNMATCHED)
def test_masks_that_cannot_be_matched_are_refused(form, state, tmp_path):
    masks = {name: torch.rand(w.shape) < 0.3 for name, w in state.items() if w.ndim > 1}
    with pytest.raises(CheckpointError, match=r"name no weight of the network, such as .*; expected"):
        read(tmp_path, {"state_dict": below("model.", state)} | UNMATCHED[form](masks))


def test_masks_in_a_place_named_after_masks_are_applied(state, tmp_path):
    masks = {name: torch.rand(w.shape) < 0.3 for name, w in state.items() if w.ndim > 1}
    got, _ = read(tmp_path, {"mask_run": {"state_dict": state, "masks": masks}})
    assert_same(got, {name: w * masks.get(name, 1) for name, w in state.items()})


def test_several_sets_of_masks_are_refused(state, tmp_path):
    masks = {name: torch.rand(w.shape) < 0.3 for name, w in state.items() if w.ndim > 1}
    with pytest.raises(CheckpointError, match="holds masks under 'masks' and 'old_masks'; expected one set"):
        read(tmp_path, {"state_dict": state, "masks": masks, "old_masks": masks})


def test_masks_of_other_networks_in_the_file_are_left_out(state, tmp_path):
    masks = {name: torch.rand(w.shape) < 0.3 for name, w in state.items() if w.ndim > 1}
    model = below("net.", state) | {"critic.0.weight": torch.rand(3, 3)}
    stored = below("net.", masks) | {"critic.0.weight": torch.ones(3, 3)}
    got, _ = read(tmp_path, {"state_dict": model, "masks": stored})
    assert_same(got, {name: w * masks.get(name, 1) for name, w in state.items()})


@pytest.mark.parametrize(
    "beside",
    [{"masked_model": 1}, {"mask_settings": {"ratio": 0.1}}, {"mask": "rounds/3.pt"}, {"masks": []}],
    ids=lambda beside: next(iter(beside)),
)
def test_what_only_sounds_like_masks_is_no_mask(beside, state, tmp_path):
    beside = {name: state if value == 1 else value for name, value in beside.items()}
    for content in ({"state_dict": state} | beside, {"mask_run": {"state_dict": state} | beside}):
        got, source = read(tmp_path, content)
        assert_same(got, state)
        assert "masks" not in source


@pytest.mark.parametrize("names", [("weight_g", "weight_v"), ("original0", "original1")])
def test_weights_of_weight_norm_are_computed(names, state, tmp_path):
    stored = {}
    for name, w in state.items():
        if name.endswith(".weight") and w.ndim == 4:
            module = name.removesuffix("weight")
            inner = module if names[0] == "weight_g" else f"{module}parametrizations.weight."
            stored |= {inner + names[0]: w.flatten(1).norm(dim=1).view(-1, 1, 1, 1), inner + names[1]: 3 * w}
        else:
            stored[name] = w
    got, _ = read(tmp_path, {"state_dict": stored})
    for name, w in state.items():
        torch.testing.assert_close(got[name], w)
    some = next(name for name in stored if name.endswith(names[0]))
    with pytest.raises(CheckpointError, match="is missing; expected both, as weight_norm stores them"):
        read(tmp_path, {k: v for k, v in stored.items() if k != some})
    with pytest.raises(CheckpointError, match="expected floating-point"):
        read(tmp_path, stored | {some: torch.ones(2)})


@pytest.mark.parametrize("form", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_spectral_norm_is_named(form, tmp_path):
    network = PromptIR(SMALL)
    form(network.patch_embed.proj)
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight is stored by spectral_norm"):
        read(tmp_path, network.state_dict())


def test_masks_of_the_raw_network_alone_are_not_passed_over_for_its_average(state, tmp_path):
    masks = {name: torch.rand(w.shape) < 0.3 for name, w in state.items() if w.ndim > 1}
    content = {"state_dict": below("net.", state) | below("ema_net.", state), "masks": below("net.", masks)}
    got, source = read(tmp_path, content)
    assert_same(got, {name: w * masks.get(name, 1) for name, w in state.items()})
    assert "(masks applied); averaged weights under 'state_dict.ema_net' cannot be used" in source
    with pytest.raises(CheckpointError, match="name no weight of the network"):
        read(tmp_path, content, "averaged")
