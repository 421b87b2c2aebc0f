"""Every form of file that holds a PromptIR loads to the same weights; others are refused in one line."""

from __future__ import annotations

import json
import math
import pickle
import re
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from configs import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from mirl_sparse.architectures.promptir import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.tickets import candidates
from mirl_sparse.tickets.checkpoint import Checkpoint, CheckpointError, read_checkpoint

State = dict[str, Tensor]
QKV = "encoder_level2.1.attn.qkv.weight"
PROJECT_IN = "latent.0.ffn.project_in.weight"


@pytest.fixture(scope="module")
def network() -> PromptIR:
    torch.manual_seed(0)
    return PromptIR(SMALL).eval()


@pytest.fixture
def state(network: PromptIR) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def shapes_of(config: PromptIRConfig) -> State:
    with torch.device("meta"):
        return PromptIR(config).state_dict()


def assert_same(read: Checkpoint, expected: State) -> None:
    assert list(read.state) == list(expected)
    for name, tensor in read.state.items():
        assert type(tensor) is Tensor and tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert torch.equal(tensor, expected[name]), name


def refused(path: Path, *parts: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert message.isprintable(), message  # in particular no newline
    assert message.startswith(str(path)[:20])
    for part in parts:
        assert part in message, message
    return message


def refused_state(tmp_path: Path, content: object, *parts: str) -> str:
    torch.save(content, tmp_path / "weights.pt")
    return refused(tmp_path / "weights.pt", *parts)


# Forms of files


def lightning(state: State, path: Path) -> None:
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.4.0",
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(30.0)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}],
        "hyper_parameters": {"lr": 1e-4},
        "state_dict": prefixed(state, "net."),
    }
    torch.save(content, path)


FORMS: dict[str, tuple[str, str, Callable[[State, Path], None]]] = {
    "lightning": ("a.ckpt", "Lightning checkpoint", lightning),
    "plain": ("a.pth", "state dict", lambda s, p: torch.save(s, p)),
    "legacy": ("a.pt", "state dict", lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False)),
    "parameters": (
        "a.pt",
        "state dict",
        lambda s, p: torch.save({k: nn.Parameter(v) for k, v in s.items()}, p),
    ),
    "beside numbers": ("a.pt", "state dict", lambda s, p: torch.save(s | {"step": 7, "notes": {}}, p)),
    "safetensors": ("a.safetensors", "safetensors", lambda s, p: save_file(s, p)),
    "safetensors by content": ("a.bin", "safetensors", lambda s, p: save_file(s, p)),
    "safetensors with config": (
        "a.safetensors",
        "safetensors",
        lambda s, p: save_file(s, p, metadata={"config": json.dumps(SMALL.to_dict())}),
    ),
    "two levels": (
        "a.pt",
        "nested state dict under 'trainer.weights'",
        lambda s, p: torch.save({"trainer": {"weights": s}}, p),
    ),
} | {
    key: (
        "a.pt",
        f"nested state dict under {key!r}",
        lambda s, p, key=key: torch.save({"step": 1, key: s}, p),
    )
    for key in (
        "state_dict",
        "model",
        "params",
        "network",
        "net",
        "generator",
        "model_state_dict",
        "odd",
        "7",
    )
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_round_trips(form: str, state: State, tmp_path: Path) -> None:
    name, source, write = FORMS[form]
    write(state, tmp_path / name)
    read = read_checkpoint(tmp_path / name)
    assert_same(read, state)
    assert (read.path, read.config, read.source) == (tmp_path / name, SMALL, source)
    assert sorted(read.ignored) == sorted(
        f"{kind}{i}.weight" for kind in ("chnl_reduce", "reduce_noise_channel_") for i in (1, 2, 3)
    )


def test_a_network_without_the_unused_layers_is_read(tmp_path: Path) -> None:
    config = replace(SMALL, unused_layers=False)
    torch.save(PromptIR(config).state_dict(), tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert read.config == config and read.ignored == ()


PREFIXES = (
    "",
    "net.",
    "module.",
    "_orig_mod.",
    "model.",
    "net._orig_mod.module.",
    "_orig_mod.module.model.net.",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_stripped(prefix: str, state: State, tmp_path: Path) -> None:
    torch.save(prefixed(state, prefix), tmp_path / "a.pt")
    assert_same(read_checkpoint(tmp_path / "a.pt"), state)


def test_compiled_parts_are_stripped_inside_names(state: State, tmp_path: Path) -> None:
    inside = {"net." + re.sub(r"^(latent|refinement\.0)\.", r"\1._orig_mod.", k): v for k, v in state.items()}
    assert sum("_orig_mod" in name for name in inside) > 10
    torch.save({"state_dict": inside}, tmp_path / "a.ckpt")
    assert_same(read_checkpoint(tmp_path / "a.ckpt"), state)


def test_wrappers_stay_inside_names(state: State, tmp_path: Path) -> None:
    state["latent.module.0.attn.temperature"] = state.pop("latent.0.attn.temperature")
    refused_state(tmp_path, state, "latent.0.attn.temperature is missing")


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (("params", "params_ema"), "params_ema"),
        (("state_dict", "ema"), "ema"),
        (("odd", "model", "state_dict"), "state_dict"),
        (("odd", "even"), "odd"),
        (("schema", "model"), "model"),  # "ema" only as a word
    ],
)
def test_the_choice_between_networks_is_stated(
    keys: list[str], chosen: str, state: State, tmp_path: Path
) -> None:
    content = {key: {k: torch.full_like(v, i) for k, v in state.items()} for i, key in enumerate(keys)}
    torch.save(content, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    average = ", averaged weights" if "ema" in chosen.split("_") else ""
    assert read.source == f"nested state dict under {chosen!r}{average}"
    assert read.state[QKV].unique().item() == list(keys).index(chosen)


def test_the_shallowest_network_comes_first_but_behind_averages(state: State, tmp_path: Path) -> None:
    torch.save({"inner": {"model": state}, "odd": state}, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt").source == "nested state dict under 'odd'"
    torch.save({"ema": {"inner": dict(state)}, "odd": state}, tmp_path / "b.pt")
    assert (
        read_checkpoint(tmp_path / "b.pt").source == "nested state dict under 'ema.inner', averaged weights"
    )


def test_a_mapping_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, object] = {"a": {}}
    content["b"] = content
    refused_state(tmp_path, content, "not a PromptIR", "no tensors")


# Values


def test_prune_masks_are_applied(network: PromptIR, state: State, tmp_path: Path) -> None:
    pruned = PromptIR(SMALL)
    pruned.load_state_dict(state)
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", amount=0.5)
        if isinstance(module, nn.Linear):
            prune.random_unstructured(module, "bias", amount=1)
    stored = pruned.state_dict()
    assert QKV not in stored and "prompt1.linear_layer.bias_orig" in stored
    torch.save({"state_dict": prefixed(stored, "net.")}, tmp_path / "a.ckpt")
    read = read_checkpoint(tmp_path / "a.ckpt")
    assert read.source == "nested state dict under 'state_dict' (masks applied)"
    expected = {
        name: stored[f"{name}_orig"] * stored[f"{name}_mask"] if f"{name}_orig" in stored else stored[name]
        for name in state
    }
    assert_same(read, expected)
    assert (read.state[QKV] == 0).float().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
def test_masks_of_any_number_type_are_applied(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    mask = torch.rand_like(state[QKV]) > 0.5
    stored = {k: v for k, v in state.items() if k != QKV} | {
        f"{QKV}_orig": state[QKV],
        f"{QKV}_mask": mask.to(dtype),
    }
    torch.save(stored, tmp_path / "a.pt")
    assert_same(read_checkpoint(tmp_path / "a.pt"), state | {QKV: state[QKV] * mask})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    other = {name: tensor.to(dtype) for name, tensor in state.items()}
    torch.save(other, tmp_path / "a.pt")
    assert_same(read_checkpoint(tmp_path / "a.pt"), {name: tensor.float() for name, tensor in other.items()})


def test_odd_memory_layouts_become_contiguous_copies(state: State, tmp_path: Path) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in state.values()])
    parts = flat.split([tensor.numel() for tensor in state.values()])  # views of one storage
    views = {name: part.view(tensor.shape) for (name, tensor), part in zip(state.items(), parts, strict=True)}
    views["output.weight"] = state["output.weight"].to(memory_format=torch.channels_last)
    assert not views["output.weight"].is_contiguous()
    torch.save(views, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert_same(read, state)
    assert len({tensor.untyped_storage().data_ptr() for tensor in read.state.values()}) == len(state)


def test_weights_outlive_the_file(state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    read = read_checkpoint(path)
    with path.open("r+b") as file:  # in place, as a memory map would see it
        file.write(b"\xff" * path.stat().st_size)
    assert_same(read, state)


def test_the_network_of_a_checkpoint_computes_the_same(
    network: PromptIR, state: State, tmp_path: Path
) -> None:
    lightning(state, tmp_path / "a.ckpt")
    read = read_checkpoint(tmp_path / "a.ckpt")
    loaded = read.network()
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))
        next(loaded.parameters()).zero_()
    assert not loaded.training and all(
        p.requires_grad and p.device.type == "cpu" for p in loaded.parameters()
    )
    assert_same(read, state)  # a copy: the checkpoint keeps its weights


# A config stated in the file's metadata


def test_stated_expansion_wins_over_the_shortest(state: State, tmp_path: Path) -> None:
    exact = replace(SMALL, ffn_expansion=2.6600001)
    assert {k: v.shape for k, v in shapes_of(exact).items()} == {k: v.shape for k, v in state.items()}
    save_file(state, tmp_path / "a.safetensors", metadata={"config": json.dumps(exact.to_dict())})
    assert read_checkpoint(tmp_path / "a.safetensors").config == exact


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (json.dumps(replace(SMALL, dim=8).to_dict()), "says dim 8, its tensors 4"),
        (
            json.dumps(replace(SMALL, ffn_expansion=2.0).to_dict()),
            "says ffn_expansion 2.0, its tensors 2.66",
        ),
        (json.dumps(SMALL.to_dict() | {"num_blocks": [1, 1, 1, 1]}), "says num_blocks (1, 1, 1, 1)"),
        (json.dumps(SMALL.to_dict() | {"num_blocks": [10**9] * 4}), "says num_blocks"),
        (json.dumps(SMALL.to_dict() | {"ffn_expansion": math.nan}), "no PromptIR's"),
        (json.dumps(SMALL.to_dict() | {"ffn_expansion": math.inf}), "no PromptIR's"),
        (json.dumps(SMALL.to_dict() | {"width": 3}), "'width'"),
    ],
)
def test_a_stated_config_must_agree(text: str, part: str, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors", metadata={"config": text})
    refused(tmp_path / "a.safetensors", part, "correct or remove")


@pytest.mark.parametrize("text", ["options.yml", "dim: 48", '{"lr": 1}', "[" * 100_000, "{", "3", ""])
def test_the_config_of_another_program_is_ignored(text: str, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.safetensors", metadata={"config": text})
    assert read_checkpoint(tmp_path / "a.safetensors").config == SMALL


# Refusals: tensors that form no network


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if k not in names}


def with_(**tensors: Tensor) -> Callable[[State], State]:
    return lambda state: state | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def reshaped(name: str, *shape: int) -> Callable[[State], State]:
    return lambda state: state | {name: torch.zeros(shape)}


def cast(name: str, dtype: torch.dtype) -> Callable[[State], State]:
    return lambda state: state | {name: state[name].to(dtype)}


def filled(name: str, value: float) -> Callable[[State], State]:
    def fill(state: State) -> State:
        state[name].view(-1)[-1] = value
        return state

    return fill


def pair(
    orig: tuple[int, ...] | None, mask: tuple[int, ...] | None, keep: bool = False
) -> Callable[[State], State]:
    def split(state: State) -> State:
        made = {f"output.weight_{k}": torch.ones(v) for k, v in (("orig", orig), ("mask", mask)) if v}
        return made | {k: v for k, v in state.items() if keep or k != "output.weight"}

    return split


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {re.sub(old, new, k): v for k, v in state.items()}


def keep_first_blocks(state: State) -> State:
    return {k: v for k, v in state.items() if not k.startswith("decoder_level2.1")}


BROKEN: dict[str, tuple[Callable[[State], State], tuple[str, ...]]] = {
    "missing": (without(QKV, "output.weight"), (f"missing {QKV}, output.weight",)),
    "missing, needed to infer": (without("prompt2.prompt_param"), ("prompt2.prompt_param is missing",)),
    "no patch embedding": (without("patch_embed.proj.weight"), ("not a PromptIR", "patch_embed.proj.weight")),
    "extra": (with_(latent__1__weight=torch.ones(2)), ("not of the network latent.1.weight",)),
    "many extra": (
        with_(**{f"output__loss{i}": torch.ones(1) for i in range(9)}),
        ("output.loss0, output.loss1, output.loss2, output.loss3, output.loss4 and 4 more",),
    ),
    "misshapen": (reshaped(QKV, 24, 7, 1, 1), (f"{QKV} is 24x7x1x1 (expected 24x8x1x1)",)),
    "misshapen gain": (reshaped("latent.0.norm1.body.weight", 31), ("is 31 (expected 32)",)),
    "scalar": (reshaped("patch_embed.proj.weight"), ("a scalar", "4 dimensions")),
    "flat prompt": (
        reshaped("prompt1.prompt_param", 3, 4),
        ("prompt1.prompt_param is 3x4; expected 5 dimensions",),
    ),
    "no dim": (reshaped("patch_embed.proj.weight", 0, 3, 3, 3), ("describe no PromptIR", "dim is 0")),
    "odd dim": (reshaped("patch_embed.proj.weight", 5, 3, 3, 3), ("describe no PromptIR", "dim is 5")),
    "heads": (reshaped("latent.0.attn.temperature", 5, 1, 1), ("latent has 32 channels for 5 heads",)),
    "odd hidden": (reshaped(PROJECT_IN, 5, 32, 1, 1), (PROJECT_IN, "even number of rows")),
    "no hidden": (reshaped(PROJECT_IN, 0, 32, 1, 1), (PROJECT_IN, "even number of rows")),
    "no channels": (reshaped(PROJECT_IN, 2, 0, 1, 1), (PROJECT_IN, "even number of rows")),
    "another hidden": (
        reshaped(PROJECT_IN, 100, 32, 1, 1),
        ("no one ffn_expansion", f"{PROJECT_IN} (100x32x1x1)"),
    ),
    "uneven stages": (keep_first_blocks, ("encoder_level2 has 2 block(s) and decoder_level2 1",)),
    "gap": (renamed(r"^decoder_level2\.1", "decoder_level2.2"), ("decoder_level2.1 is missing",)),
    "huge index": (renamed(r"^refinement\.0", "refinement." + "9" * 5000), ("refinement.0 is missing",)),
    "no stage": (renamed(r"^refinement\..*", "x"), ("refinement.0 is missing",)),
    "half of the unused": (without("chnl_reduce2.weight"), ("missing chnl_reduce2.weight",)),
    "twice": (
        lambda s: prefixed(s, "net.") | {"net._orig_mod.output.weight": s["output.weight"]},
        ("net.output.weight and net._orig_mod.output.weight both name output.weight",),
    ),
    "orphan orig": (pair((3, 8, 3, 3), None), ("output.weight_orig has no output.weight_mask",)),
    "orphan mask": (pair(None, (3, 8, 3, 3)), ("output.weight_mask has no output.weight_orig",)),
    "mask beside weight": (pair((3, 8, 3, 3), (3, 8, 3, 3), keep=True), ("output.weight is stored beside",)),
    "mask of another shape": (
        pair((3, 8, 3, 3), (3, 1, 1, 1)),
        ("is 3x8x3x3", "3x1x1x1; expected equal shapes"),
    ),
    "NaN": (filled(QKV, math.nan), (f"{QKV} holds NaN",)),
    "infinite": (filled(QKV, -math.inf), (f"{QKV} holds NaN or infinite",)),
    "beyond float32": (
        lambda s: filled(QKV, 1e300)(s | {QKV: s[QKV].double()}),
        (f"{QKV} holds NaN or infinite",),
    ),
    "integers": (cast(QKV, torch.int32), (f"{QKV} is torch.int32",)),
    "booleans": (cast(QKV, torch.bool), (f"{QKV} is torch.bool",)),
    "complex": (cast(QKV, torch.complex64), (f"{QKV} is torch.complex64",)),
    "eight bits": (cast(QKV, torch.float8_e4m3fn), (f"{QKV} is torch.float8_e4m3fn",)),
    "complex mask": (
        lambda s: without(QKV)(s) | {QKV + "_orig": s[QKV], QKV + "_mask": s[QKV].to(torch.complex64)},
        (f"{QKV}_mask is torch.complex64",),
    ),
    "sparse": (lambda s: s | {QKV: s[QKV].to_sparse()}, (f"{QKV} is a sparse",)),
    "quantised": (
        lambda s: s | {QKV: torch.quantize_per_tensor(s[QKV], 0.1, 0, torch.qint8)},
        (f"{QKV} is a sparse, nested or quantised tensor",),
    ),
    "meta": (lambda s: s | {QKV: s[QKV].to("meta")}, (f"{QKV} is on meta",)),
    "a terabyte": (
        lambda s: s | {"patch_embed.proj.weight": torch.zeros(1).expand(10**10, 3, 3, 3)},
        ("patch_embed.proj.weight repeats",),
    ),
    "control characters": (
        with_(**{"latent.x\n\x1b[31m": torch.ones(2)}),
        (r"not of the network latent.x\n\x1b[31m",),
    ),
}


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning"
)  # torch's, on quantised tensors
@pytest.mark.parametrize("case", BROKEN)
def test_broken_networks_are_refused(case: str, state: State, tmp_path: Path) -> None:
    change, parts = BROKEN[case]
    refused_state(tmp_path, change(state), *parts)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3))
    advice = "give the whole checkpoint of one PromptIR"
    refused_state(tmp_path, other.state_dict(), "not a PromptIR", "0.weight, 0.bias", "and 4 more", advice)
    refused_state(
        tmp_path, {"state_dict": other.state_dict(), "epoch": 1}, "not a PromptIR", "0.weight", advice
    )
    save_file({k: v.contiguous() for k, v in other.state_dict().items()}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "not a PromptIR", advice)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({}, "no tensors"),
        ({1: torch.ones(1)}, "no tensors"),
        ([torch.ones(3)], "holds a list"),
        (torch.ones(3), "holds a Tensor"),
        (None, "holds a NoneType"),
    ],
)
def test_contents_without_names_are_refused(content: object, part: str, tmp_path: Path) -> None:
    refused_state(tmp_path, content, part)


# Refusals: files


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.ckpt", b"", "empty file"),
        ("a.safetensors", b"", "empty file"),
        ("a.pt", b"hello, world\n", "neither a PyTorch checkpoint"),
        ("a.pt", b"cos\nsystem\n(S'true'\ntR.", "holds pickled code (os.system)"),
        ("a.pt", b"{}", "neither a PyTorch checkpoint"),
        ("a.txt", b"\xff\xfe" * 500, "neither a PyTorch checkpoint"),
        ("a.pt", b"PK\x05\x06" + bytes(18), "neither a PyTorch checkpoint"),
        ("a.safetensors", b"hello, world\n", "not a whole safetensors file"),
        ("a.bin", (2).to_bytes(8, "little") + b"{}", "no tensors"),
        ("a.bin", (2).to_bytes(8, "little") + b"{", "not a whole safetensors file"),
        (
            "a.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "git lfs pull",
        ),
        ("a.ckpt", b"\n<!DOCTYPE html><html><title>Quota exceeded</title></html>", "a web page"),
    ],
)
def test_other_files_are_refused(name: str, content: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, part)


def test_an_image_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.bmp"):
        Image.new("RGB", (40, 30), "teal").save(tmp_path / name)
        refused(tmp_path / name, "neither a PyTorch checkpoint")
    (tmp_path / "a.png").rename(tmp_path / "b.safetensors")
    refused(tmp_path / "b.safetensors", "not a whole safetensors file")


def test_compressed_records_are_refused(state: State, tmp_path: Path) -> None:
    """A few bytes of them may stand for a memory full."""
    torch.save(state, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as whole,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for record in whole.infolist():
            small.writestr(record.filename, whole.read(record))
    refused(tmp_path / "b.pt", "records are compressed")


def test_shapes_that_overflow_are_refused(state: State, tmp_path: Path) -> None:
    """Empty tensors take no bytes, whatever their other sizes are."""
    save_file(state | {"patch_embed.proj.weight": torch.zeros(2**31, 0, 3, 3)}, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "the shapes of the tensors describe no PromptIR", "overflowed")


def test_names_of_many_parts_are_read_in_no_time() -> None:
    began = time.perf_counter()
    assert candidates._plain("net._orig_mod." * 300_000 + "x") == "net." * 300_000 + "x"
    assert candidates._plain("a.parametrizations." * 300_000 + "x").endswith("x")
    assert time.perf_counter() - began < 2


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "not a regular file")
    refused(tmp_path / "none.ckpt", "no such file")
    refused(tmp_path / ("x" * 400), "cannot be read")
    with pytest.raises(CheckpointError, match=r"cannot be read|no such file"):
        read_checkpoint(Path("a\0b"))
    with pytest.raises(CheckpointError, match=r"a\\nb\.pt: no such file"):
        read_checkpoint(tmp_path / "a\nb.pt")


@pytest.mark.parametrize("form", ["lightning", "legacy", "safetensors", "safetensors by content"])
def test_truncated_files_are_refused(form: str, state: State, tmp_path: Path) -> None:
    name, _, write = FORMS[form]
    write(state, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (1, 4, 8, 9, 60, 1000, 9000, 40_000, len(whole) // 2, len(whole) * 9 // 10, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        refused(tmp_path / name, "expected")


@settings(max_examples=60)
@given(st.binary(max_size=60), st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x20" + bytes(7) + b"{"]))
def test_no_bytes_escape_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, head: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pt"
    path.write_bytes(head + tail)
    refused(path)


class Payload:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.witness,)


def hostile_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def hostile_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def hostile_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=4))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [hostile_zip, hostile_legacy, hostile_pickle])
def test_pickled_code_is_refused_and_not_run(
    write: Callable[[object, Path], None], state: State, tmp_path: Path
) -> None:
    witness, path = tmp_path / "witness", tmp_path / "a.ckpt"
    write({"state_dict": state, "payload": Payload(witness)}, path)
    message = refused(path, "unsafe", "save a plain state dict")
    if write is not hostile_pickle:
        assert "pickled code (" in message
    assert not witness.exists()
    if write is hostile_pickle:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert witness.exists()  # an unsafe loader runs it: this test can fail


def test_a_pickled_network_is_refused(network: PromptIR, tmp_path: Path) -> None:
    refused_state(
        tmp_path,
        network,
        "pickled code (mirl_sparse.architectures.promptir.network.PromptIR)",
        "state_dict()",
    )
