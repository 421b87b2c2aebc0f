"""Damaged checkpoints and tickets give a network or one line, whatever is damaged in them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import TINY
from damage import damaged
from safetensors.torch import save

from mirl_sparse import UserError
from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.tickets import is_ticket, pack, read_checkpoint, read_ticket


def _samples() -> dict[str, bytes]:
    torch.manual_seed(0)
    network = PromptIR(TINY)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(torch.rand(p.shape) < 0.3)
    content = {
        "state_dict": {f"net.{name}": value for name, value in network.state_dict().items()},
        "epoch": 3,
        "hyper_parameters": {"lr": 1e-3, "path": Path("data")},
    }
    files = {}
    for name, zipped in (("zip", True), ("legacy", False)):
        stream = BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=zipped)
        files[name] = stream.getvalue()
    files["safetensors"] = save(dict(network.state_dict()))
    files["ticket"] = pack(network, {"density": 0.3})
    return files


SAMPLES = _samples()


def check(name: str, seeds: range, path: Path) -> None:
    for seed in seeds:
        path.write_bytes(damaged(SAMPLES[name], np.random.default_rng(seed)))
        try:
            network = read_ticket(path)[0] if is_ticket(path) else read_checkpoint(path).network()
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert isinstance(network, PromptIR)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLES)
def test_a_damaged_file_gives_a_network_or_one_line(name, tmp_path):
    check(name, range(125), tmp_path / "a.pt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SAMPLES)
def test_many_damaged_files_give_a_network_or_one_line(name, tmp_path):
    check(name, range(1000, 4000), tmp_path / "a.pt")


def test_samples_are_sound(tmp_path):
    for name, data in SAMPLES.items():
        (tmp_path / name).write_bytes(data)
        assert is_ticket(tmp_path / name) == (name == "ticket")
        read_checkpoint(tmp_path / name) if name != "ticket" else read_ticket(tmp_path / name)
