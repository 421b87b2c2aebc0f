"""The file of a ticket of another architecture: what it holds, and what a damaged one does."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

if not find_spec("spandrel"):
    pytest.skip("spandrel is not installed", allow_module_level=True)

from image_networks import pruned

from mirl_sparse import SparseRestorer
from mirl_sparse.architectures.image_network import NetworkWeights
from mirl_sparse.errors import UserError
from mirl_sparse.tickets import TicketError, pack_network, read_ticket, unpack_network
from mirl_sparse.tickets.file import read_metadata
from mirl_sparse.tickets.network_file import unpack_tensors

NAME = "intro.weight"


@pytest.fixture(scope="module")
def weights() -> NetworkWeights:
    return NetworkWeights("NAFNet", pruned("NAFNet").state_dict(), "test")


@pytest.fixture(scope="module")
def data(weights) -> bytes:
    return pack_network(weights, {"density": 0.1})


def rewritten(data: bytes, change) -> bytes:
    tensors, metadata = load(data), read_metadata(data)
    change(tensors, metadata)
    return save(tensors, metadata)


def test_a_file_holds_masks_values_shapes_and_the_name_of_the_architecture(data, tmp_path) -> None:
    (tmp_path / "t.safetensors").write_bytes(data)
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    architecture = json.loads(metadata["architecture"])
    assert metadata["format"] == "mirl-sparse ticket 2"
    assert (architecture["source"], architecture["name"]) == ("spandrel", "NAFNet")
    assert architecture["versions"].startswith("spandrel ")
    assert json.loads(metadata["statistics"]) == {"density": 0.1}
    assert {f"{NAME}.mask", f"{NAME}.values", f"{NAME}.shape", "intro.bias"} <= names
    assert NAME not in names


def test_every_kind_of_tensor_comes_back() -> None:
    shared = torch.arange(6.0).view(2, 3)
    state = {
        "sparse": torch.eye(20),
        "zeros": torch.zeros(4, 5, 1),
        "dense": torch.rand(3, 4),
        "index": torch.arange(12).view(3, 4) // 5,
        "flag": torch.tensor(True),
        "half": torch.eye(9).half(),
        "mask": torch.eye(30) != 0,
        "a.values": shared,
        "b.shape": shared.t(),
        "empty": torch.zeros(0, 3),
    }
    kept = unpack_tensors(load(pack_network(NetworkWeights("NAFNet", state, ""), {})))
    assert kept.keys() == state.keys()
    for name, value in state.items():
        assert kept[name].dtype == value.dtype and torch.equal(kept[name], value), name


DAMAGES = {
    "lacks the architecture": lambda t, m: m.pop("architecture"),
    "another source": lambda t, m: m.update(
        architecture=json.dumps({"source": "x", "name": "NAFNet", "versions": "1"})
    ),
    "another name": lambda t, m: m.update(
        architecture=json.dumps({"source": "spandrel", "name": "SCUNet", "versions": "spandrel 9"})
    ),
    "no JSON": lambda t, m: m.update(architecture="{"),
    "a list": lambda t, m: m.update(architecture="[]"),
    "short mask": lambda t, m: t.update({f"{NAME}.mask": t[f"{NAME}.mask"][:-1].clone()}),
    "mask of floats": lambda t, m: t.update({f"{NAME}.mask": t[f"{NAME}.mask"].float()}),
    "few values": lambda t, m: t.update({f"{NAME}.values": t[f"{NAME}.values"][1:].clone()}),
    "huge shape": lambda t, m: t.update({f"{NAME}.shape": torch.tensor([2**40, 2**40, 3, 3])}),
    "negative shape": lambda t, m: t.update({f"{NAME}.shape": torch.tensor([-16, -3, 3, 3])}),
    "shape of floats": lambda t, m: t.update({f"{NAME}.shape": torch.ones(4)}),
    "lacks a tensor": lambda t, m: t.pop("ending.bias"),
    "lacks a mask": lambda t, m: t.pop(f"{NAME}.mask"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ticket_is_refused_in_one_line(damage, data) -> None:
    with pytest.raises(UserError) as caught:
        unpack_network(rewritten(data, DAMAGES[damage])).network()
    assert str(caught.value).isprintable()


def test_the_error_of_another_architecture_names_both_and_the_versions(data) -> None:
    with pytest.raises(
        TicketError, match=r"ticket of SCUNet, made with spandrel 9; spandrel .* takes it for NAFNet"
    ):
        unpack_network(rewritten(data, DAMAGES["another name"]))


@pytest.mark.parametrize("end", [0, 4, 100, 5000, -1])
def test_a_cut_file_is_refused_in_one_line(data, end) -> None:
    with pytest.raises(UserError):
        unpack_network(data[:end])


def test_who_expects_a_promptir_is_told_what_the_ticket_is(data, tmp_path) -> None:
    (tmp_path / "t.safetensors").write_bytes(data)
    for read in (read_ticket, SparseRestorer.from_pretrained):
        with pytest.raises(UserError, match=r"ticket of NAFNet; .*load_restorer loads both"):
            read(tmp_path / "t.safetensors")
