"""Test how a tuning is made, written beside a ticket and read again, in the interpreter."""

import json

import pytest
import torch

pytest.importorskip("triton")

from mirl_kernels.core.triton import Tile, Workspace
from mirl_sparse.errors import UserError
from mirl_sparse.performance.tune import tune
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.runtime.triton import TritonEngine
from mirl_sparse.runtime.tuning import Tuning, read_tuning, tuning_path
from mirl_sparse.tickets.file import write_ticket


@pytest.fixture
def ticket(network, tmp_path):
    path = tmp_path / "small.ticket.safetensors"
    write_ticket(path, network, {})
    return path


def test_a_ticket_runs_with_the_tuning_beside_it(ticket, network, device, monkeypatch):
    x = torch.rand(1, 3, 8, 8, device=device)
    want = SparseRestorer(network, "reference")(x.cpu())
    tuning = tune(ticket, 8, 5, "float32")
    assert tuning_path(ticket).name == "small.ticket.tuning.json"
    assert read_tuning(ticket, "float32") == tuning
    assert read_tuning(ticket, "float16") is None
    assert tuning.tiles
    assert not tuning.dense
    used = []
    made = Workspace.__init__
    monkeypatch.setattr(
        Workspace, "__init__", lambda self, *a, **k: (made(self, *a, **k), used.append(self))[0]
    )
    restorer = SparseRestorer.from_pretrained(ticket, "triton", precision="float32")
    torch.testing.assert_close(restorer(x).cpu(), want, rtol=0, atol=1e-4)
    assert used[0].tiles == tuning.tiles


@pytest.fixture
def quick(monkeypatch):
    """Nothing is timed."""
    tuning = Tuning(
        {"a kernel": Tile({"BLOCK_P": 64}, 4, pipelined=False)}, frozenset({"patch_embed", "latent.0"})
    )
    monkeypatch.setattr(TritonEngine, "tune", lambda *_: tuning)
    return tuning


def test_steps_that_the_tuning_names_run_as_dense_operators(ticket, quick, device):
    assert tune(ticket) == read_tuning(ticket, "float16") == quick
    restorer = SparseRestorer.from_pretrained(ticket, "triton")
    made = []
    for name, op in restorer.engine()._program.dense.items():
        op.register_forward_hook(lambda *_, name=name: made.append(name))
    restorer(torch.rand(1, 3, 8, 8, device=device))
    assert set(made) == quick.dense


def test_a_tuning_of_another_ticket_is_ignored_and_a_damaged_file_is_an_error(ticket, quick, network):
    tune(ticket)
    write_ticket(ticket, network, {"another": 1})
    assert read_tuning(ticket, "float16") is None
    tune(ticket)
    tune(ticket, precision="bfloat16")
    assert read_tuning(ticket, "float16") == read_tuning(ticket, "bfloat16") == quick
    path = tuning_path(ticket)
    for damaged in ("{", "[]", json.dumps(json.loads(path.read_text()) | {"tunings": {"a": 1}})):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"small\.ticket\.tuning\.json: cannot be read"):
            SparseRestorer.from_pretrained(ticket, "triton")
        SparseRestorer.from_pretrained(ticket, "reference")  # which does not care
