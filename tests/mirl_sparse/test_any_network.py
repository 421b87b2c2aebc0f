"""A checkpoint of any architecture becomes a ticket that restores as the dense network."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sparsifying import SparseIsFree

if not (find_spec("spandrel") and find_spec("spandrel_extra_arches")):
    pytest.skip("spandrel and spandrel_extra_arches are not installed", allow_module_level=True)

from image_networks import DENSITY, NETWORKS, pruned, write_checkpoint

from mirl_sparse import NetworkRestorer, UserError, convert, load_restorer
from mirl_sparse.architectures import image_network
from mirl_sparse.architectures.image_network import ImageNetwork
from mirl_sparse.cli import app
from mirl_sparse.tickets import load_any_network, read_any_checkpoint, read_network_ticket

QUICK = ("NAFNet", "DRUNet", "RCAN", "Compact")


@pytest.fixture(autouse=True)
def every_layer_is_swapped(monkeypatch):
    monkeypatch.setattr("mirl_sparse.sparsification.cpu.cost_model", SparseIsFree)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of small networks."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: write_checkpoint(name, pruned(name), folder) for name in ("NAFNet", "DRUNet", "RCAN")}


@pytest.fixture
def ticket(files, tmp_path):
    """Return a function that converts a network's checkpoint."""

    def make(name: str) -> Path:
        convert(files[name], tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return make


def photo(height: int = 37, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NETWORKS]
)
def test_a_ticket_restores_as_the_dense_network(name: str, tmp_path: Path) -> None:
    dense = pruned(name)
    checkpoint = write_checkpoint(name, dense, tmp_path)
    report = convert(checkpoint, tmp_path / "ticket.safetensors")
    assert report.source.startswith(name)
    assert report.sparsity.swapped > 3
    assert (tmp_path / "ticket.safetensors").stat().st_size < (3 * DENSITY) * checkpoint.stat().st_size * (
        2 if "half" in checkpoint.name else 1
    )

    restorer = load_restorer(tmp_path / "ticket.safetensors", "cpu")
    reference = load_any_network(checkpoint)
    assert isinstance(reference, ImageNetwork)
    kept = reference.model.state_dict()
    for key, value in dense.state_dict().items():
        expected = value.half().float() if "half" in checkpoint.name and value.is_floating_point() else value
        if key in kept:
            assert torch.equal(kept[key], expected), key

    image = as_tensor(photo())
    side = reference.size.padded(*image.shape[2:])
    inputs = torch.nn.functional.pad(image, (0, side[1] - 50, 0, side[0] - 37), "replicate")
    if reference.input_channels == 1:
        inputs = inputs.transpose(0, 1)
    with torch.no_grad():
        expected, other = reference(inputs), reference(1 - inputs)
    got = restorer.network(inputs)
    largest = expected.abs().max().item()
    assert (other - expected).abs().max() > 1e-3 * largest, "the image does not matter: nothing is proved"
    torch.testing.assert_close(got, expected, atol=1e-5 * largest, rtol=0)
    assert restorer.restore(photo()).shape == (37 * reference.scale, 50 * reference.scale, 3)


def test_what_a_restorer_gives_is_the_dense_result_of_the_padded_photo(ticket) -> None:
    file = ticket("NAFNet")
    sparse, dense = load_restorer(file), load_restorer(file, "reference")
    assert isinstance(sparse, NetworkRestorer) and sparse.report and not dense.report
    assert np.abs(sparse.restore(photo()).astype(int) - dense.restore(photo())).max() <= 1
    assert sparse.restore(photo().astype(np.uint16) * 257).dtype == np.uint16


def test_a_ticket_holds_the_checkpoint_bit_by_bit(files, ticket) -> None:
    for name in files:
        state, kept = read_any_checkpoint(files[name]).state, read_network_ticket(ticket(name)).state
        assert state.keys() == kept.keys()
        assert all(torch.equal(state[key], kept[key]) for key in state)


def test_a_ticket_is_converted_again(ticket, tmp_path) -> None:
    file = ticket("NAFNet")
    convert(file, tmp_path / "again.safetensors")
    first, second = (read_network_ticket(f).state for f in (file, tmp_path / "again.safetensors"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_averaged_weights_are_read_unless_raw_ones_are_asked_for(tmp_path) -> None:
    state = pruned("NAFNet").state_dict()
    torch.save({"params": state, "params_ema": {k: v / 2 for k, v in state.items()}}, tmp_path / "n.pth")
    name = "intro.weight"
    for weights, factor in (("auto", 0.5), ("averaged", 0.5), ("raw", 1)):
        read = read_any_checkpoint(tmp_path / "n.pth", weights).state[name]
        torch.testing.assert_close(read, factor * state[name])


def test_masks_of_torch_pruning_are_applied(tmp_path) -> None:
    state = pruned("NAFNet").state_dict()
    name = "intro.weight"
    mask = torch.rand(state[name].shape) < 0.5
    stored = {k: v for k, v in state.items() if k != name} | {
        f"{name}_orig": torch.ones(mask.shape),
        f"{name}_mask": mask.float(),
    }
    torch.save(stored, tmp_path / "n.pth")
    read = read_any_checkpoint(tmp_path / "n.pth")
    assert torch.equal(read.state[name], mask.float())
    assert "masks applied" in read.source


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda s: {"head.weight": torch.ones(3)}, "neither a PromptIR nor a network that spandrel 0."),
        (
            lambda s: {"head.weight": torch.ones(3)},
            "it holds head.weight; build the network in Python and give",
        ),
        (lambda s: {k: v for k, v in s.items() if k != "ending.bias"}, "looks like NAFNet, but spandrel"),
        (lambda s: s | {"intro.bias": s["intro.bias"] * torch.nan}, "intro.bias holds NaN"),
        (lambda s: s | {"intro.bias": torch.zeros(1).expand(16)}, "intro.bias repeats its stored values"),
    ],
)
def test_what_is_no_whole_network_is_refused_in_one_line(change, part, tmp_path) -> None:
    torch.save({"params": change(pruned("NAFNet").state_dict())}, tmp_path / "n.pth")
    with pytest.raises(UserError) as caught:
        convert(tmp_path / "n.pth", tmp_path / "t.safetensors")
    message = str(caught.value)
    assert part in message and message.isprintable()
    assert message.count(str(tmp_path)) == 1
    assert not (tmp_path / "t.safetensors").exists()


def test_without_spandrel_the_error_names_the_extra(files, ticket, monkeypatch) -> None:
    file = ticket("NAFNet")
    monkeypatch.setattr(image_network, "is_available", lambda: False)
    monkeypatch.setattr("mirl_sparse.tickets.network_checkpoint.is_available", lambda: False)
    for read in (lambda: load_any_network(files["NAFNet"]), lambda: load_restorer(file)):
        image_network.registry.cache_clear()
        with pytest.raises(UserError, match=r"the package spandrel: run pip install '\.\[spandrel\]'"):
            read()


# The commands


@pytest.fixture
def mirl(monkeypatch, capsys):
    """Return a function that runs a command and returns its status and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mirl-sparse", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run


def test_convert_inspect_and_restore(files, mirl, tmp_path) -> None:
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    status, printed = mirl("convert", files["NAFNet"], "-o", tmp_path / "t.safetensors")
    assert status == 0 and "fused NAFNet block" in printed
    assert f"read {files['NAFNet']}: NAFNet, nested state dict under 'params'" in printed
    for file in (tmp_path / "t.safetensors", files["NAFNet"]):
        status, printed = mirl("inspect", file)
        assert status == 0 and "NAFNet: density 10.41% of 71,136 weights" in printed
    ticket = tmp_path / "t.safetensors"
    assert mirl("restore", tmp_path / "photo.png", "-o", tmp_path / "out.png", "--ticket", ticket)[0] == 0
    expected = load_restorer(ticket).restore(photo())
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)


def test_an_enlarged_photo_keeps_its_transparency(ticket, mirl, tmp_path) -> None:
    file = ticket("RCAN")
    alpha = np.zeros((37, 50, 1), np.uint8)
    alpha[:, 20:] = 255
    Image.fromarray(np.concatenate([photo(), alpha], 2)).save(tmp_path / "photo.png")
    assert mirl("restore", tmp_path / "photo.png", "-o", tmp_path / "out.png", "--ticket", file)[0] == 0
    enlarged = np.asarray(Image.open(tmp_path / "out.png"))
    assert enlarged.shape == (74, 100, 4)
    assert (enlarged[:, :38, 3] == 0).all() and (enlarged[:, 42:, 3] == 255).all()


def test_a_noise_level_is_taken_by_networks_that_have_one(ticket, mirl, tmp_path) -> None:
    file = ticket("DRUNet")
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    restorer, results = load_restorer(file), {}
    for level in (15, 60):
        options = ("--noise-level", level) if level != 15 else ()
        arguments = (tmp_path / "photo.png", "-o", tmp_path / "out.png", "--ticket", file, "--overwrite")
        assert mirl("restore", *arguments, *options)[0] == 0
        results[level] = np.asarray(Image.open(tmp_path / "out.png"))
        restorer.noise_level = level
        assert np.array_equal(results[level], restorer.restore(photo()))
    assert not np.array_equal(results[15], results[60])


def test_options_that_do_not_suit_are_refused_in_one_line(ticket, mirl, tmp_path) -> None:
    enlarging, same_size = ticket("RCAN"), ticket("NAFNet")
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    for arguments, part in (
        (("restore", tmp_path / "photo.png", "--ticket", same_size, "--noise-level", 5), "takes none"),
        (("restore", tmp_path / "photo.png", "--noise-level", 5), "takes none"),
        (("restore", tmp_path / "photo.png", "--ticket", same_size, "--backend", "triton"), "of NAFNet"),
        (("eval", enlarging), "enlarges images 2x"),
        (("compile", same_size, "-o", tmp_path / "x.mirl"), "there are no programs"),
        (("inspect", same_size, "--cost"), "need a PromptIR, this is NAFNet"),
        (("bench", same_size, "--profile"), "--profile needs a PromptIR"),
    ):
        status, printed = mirl(*arguments)
        assert status == 2 and part in printed and printed.count("\n") == 1, printed


def test_eval_scores_a_network_that_keeps_the_size(ticket, mirl, tmp_path) -> None:
    (tmp_path / "clean").mkdir()
    Image.fromarray(photo(64, 64)).save(tmp_path / "clean/photo.png")
    status, printed = mirl("eval", ticket("NAFNet"), "--suite", "everyday", "--data", tmp_path / "clean")
    assert status == 0 and "dB" in printed


def test_bench_times_dense_beside_sparse(ticket, mirl) -> None:
    options = ("--size", 64, "--runs", 1, "--no-compile", "--no-peers", "--json")
    status, printed = mirl("bench", ticket("NAFNet"), *options)
    assert status == 0
    rows = json.loads(printed[printed.index("{") :])["rows"]
    assert {"dense eager", "dense channels_last", "sparse cpu"} <= rows.keys()
    assert rows["sparse cpu"]["speedup"]["ratio"] > 0
