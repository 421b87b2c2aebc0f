"""The examples of docs/any-network.md run."""

import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sparsifying import SparseIsFree

if not find_spec("spandrel"):
    pytest.skip("spandrel is not installed", allow_module_level=True)

from image_networks import pruned

from mirl_sparse.cli import app
from mirl_sparse.tickets import find_ticket

PAGE = (Path(__file__).parents[2] / "docs/any-network.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("mirl_sparse.sparsification.cpu.cost_model", SparseIsFree)
    monkeypatch.chdir(tmp_path)
    torch.save({"params": pruned("NAFNet").state_dict()}, "nafnet_pruned.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    shutil.copy(find_ticket("small"), "small.safetensors")
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_commands_run(folder, monkeypatch) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", command.split())
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert not ended.value.code, command
    assert (folder / "photo_restored.jpg").exists()


def test_the_python_examples_run(folder) -> None:
    import spandrel

    known = [support.architecture.id for support in spandrel.MAIN_REGISTRY]
    names = {"images": torch.rand(2, 3, 20, 24), "network": pruned("NAFNet")}
    for block in blocks("python"):
        exec(block, names)
    assert names["photo"].shape == (30, 40, 3)
    assert names["restored"].shape == (1, 3, 20, 24)
    assert {s.architecture.id for s in spandrel.MAIN_REGISTRY} - set(known) <= {
        "PromptIR",
        "mirl-sparse ticket",
    }
