"""Test what the benchmark for GPUs reports, and what it refuses to time."""

import re

import pytest
import torch

pytest.importorskip("triton")

from mirl_kernels.core.triton.model import GPUS
from mirl_sparse.errors import UserError
from mirl_sparse.performance import gpu_bench


@pytest.fixture
def image():
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def test_every_network_is_timed_and_compared_with_the_dense_ones(network, image, device):
    result = gpu_bench._bench(network, image, 2, False, torch.device(device))
    rows, sparse = result.rows, result.rows[gpu_bench.SPARSE]
    assert set(rows) == {gpu_bench.SPARSE, "dense eager float32", "dense eager", "dense channels_last"}
    assert all(0 < row.p20 <= row.median <= row.p80 and row.runs == 2 for row in rows.values())
    assert 0 < sparse.difference <= 2e-2
    assert sparse.speedup.over == result.strongest_dense
    assert sparse.over_default.over == "dense eager float32"
    assert set(result.to_dict()) == {
        *("gpu", "clocks", "shape", "torch", "rows", "left_out", "strongest_dense", "predicted")
    }


def test_a_wrong_result_is_not_timed(network, image, device, monkeypatch):
    restorer = gpu_bench.SparseRestorer
    monkeypatch.setattr(
        gpu_bench, "SparseRestorer", lambda *given, **more: lambda x: restorer(*given, **more)(x) + 0.1
    )
    with pytest.raises(UserError, match=r"sparse triton differs .* nothing is timed"):
        gpu_bench._bench(network, image, 2, False, torch.device(device))


def test_a_comparison_needs_a_dense_network_with_the_right_result(network, image, device, monkeypatch):
    right = gpu_bench.expected(network, image)
    monkeypatch.setattr(gpu_bench, "expected", lambda *_: right + 0.1)
    with pytest.raises(UserError, match=r"no dense network runs here .* dense channels_last differs"):
        gpu_bench._bench(network, image, 2, False, torch.device(device))


@pytest.mark.parametrize(
    ("driver", "known"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", None),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_a_gpu_is_recognised_by_the_name_that_its_driver_gives(driver, known):
    assert set(gpu_bench.NAMES) == set(GPUS)
    matching = [name for name, pattern in gpu_bench.NAMES.items() if re.search(pattern, driver)]
    assert matching == ([known] if known else [])
