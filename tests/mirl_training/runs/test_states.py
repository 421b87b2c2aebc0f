"""Test saved states: every bit comes back, and zeros take no space."""

import numpy as np
import pytest
import torch

from mirl_training.runs.states import load_state, save_state


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def test_every_bit_comes_back(tmp_path):
    sparse = torch.randn(40, 7, 3, generator=torch.Generator().manual_seed(0))
    sparse[torch.rand(sparse.shape) < 0.8] = 0
    sparse[3, 2, 1], sparse[4, 0, 0] = -0.0, float("nan")
    state = {
        "sparse": sparse,
        "view": sparse.transpose(0, 2),
        "dense": torch.randn(5, 6),
        "zeros": torch.zeros(9, 2),
        "mask": sparse != 0,
        "number": torch.tensor(3.5),
        "steps": torch.tensor([0, 0, 0, 7]),
        "nested": {"list": [sparse, None, 1.5, "name"], 3: True},
    }
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    for name in ("sparse", "view", "dense", "zeros", "mask", "number", "steps"):
        assert same_bits(loaded[name], state[name].contiguous()), name
    assert same_bits(loaded["nested"]["list"][0], sparse)
    assert loaded["nested"]["list"][1:] == [None, 1.5, "name"]
    assert loaded["nested"][3] is True


def test_a_pruned_tensor_takes_the_space_of_its_nonzero_values(tmp_path):
    pruned = torch.zeros(1000, 100)
    pruned[:, ::20] = 1.5
    save_state(tmp_path / "state.pt", {"weights": pruned})
    assert (tmp_path / "state.pt").stat().st_size < 100_000 / 8 + 5_000 * 4 + 3_000


def test_code_in_a_state_file_is_not_run(tmp_path):
    torch.save({"code": np.random.default_rng}, tmp_path / "state.pt")
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        load_state(tmp_path / "state.pt")
