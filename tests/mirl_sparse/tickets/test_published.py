"""The network at its published size answers as the published network did.

The weights are seeded, 90% of each prunable layer is zero; the published network answered in float64.
"""

import hashlib

import numpy as np
import pytest
import torch

from mirl_sparse import PromptIR, SparseRestorer
from mirl_sparse.conversion import convert

# By side: mean, standard deviation, and twelve values at equal distances through the flattened answer.
ANSWERS = {
    (64, 64): (
        0.5723196122260864,
        0.2468231268270177,
        [
            0.5324973464012146,
            0.7225140333175659,
            0.2047473043203354,
            0.6401026248931885,
            0.9194130301475525,
            0.6259214878082275,
            0.42646846175193787,
            0.7600418925285339,
            0.5337263941764832,
            0.29676106572151184,
            0.3644571900367737,
            0.6285450458526611,
        ],
    ),
    (72, 104): (
        0.5733959437854985,
        0.24802708284725253,
        [
            0.5374895930290222,
            0.598997175693512,
            1.0382659435272217,
            0.804623544216156,
            0.8118460178375244,
            0.5482507348060608,
            0.6179737448692322,
            0.8331000208854675,
            0.5816971063613892,
            0.7346261739730835,
            0.4968092441558838,
            0.5333766341209412,
        ],
    ),
}


def drawn(shape: tuple[int, ...], name: str, seed: int) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(seed))
    if name.endswith("body.weight"):
        value = 1 + 0.1 * rng.standard_normal(shape)
    elif name.endswith("body.bias"):
        value = 0.1 * rng.standard_normal(shape)
    elif name.endswith("temperature"):
        value = 1 + 0.3 * rng.standard_normal(shape)
    elif name.endswith("prompt_param"):
        value = rng.random(shape)
    else:
        bound = 1.6 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        value = rng.uniform(-bound, bound, shape)
    value = np.asarray(value, np.float32)
    if "weight" in name and value.ndim > 1:
        value[np.abs(value) < np.quantile(np.abs(value), 0.9)] = 0
    return torch.from_numpy(value)


def photo(height: int, width: int) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(5))
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([0.5 + 0.4 * np.sin(x / (7 + c) + c) * np.cos(y / (11 - c)) for c in range(3)])
    noisy = np.clip(base + 0.05 * rng.standard_normal(base.shape), 0, 1)
    return torch.from_numpy(noisy.astype(np.float32))[None]


@pytest.fixture(scope="module")
def network() -> PromptIR:
    net = PromptIR().eval().requires_grad_(False)
    shapes = {name: tuple(p.shape) for name, p in net.state_dict().items()}
    net.load_state_dict({name: drawn(shapes[name], name, 1000 + i) for i, name in enumerate(sorted(shapes))})
    return net


@pytest.fixture(scope="module")
def restorer(network: PromptIR) -> SparseRestorer:
    return SparseRestorer(network, "cpu")


def check(answer: torch.Tensor, size: tuple[int, int], tolerance: float) -> None:
    mean, deviation, values = ANSWERS[size]
    flat = answer.double().flatten()
    sample = flat[torch.linspace(0, len(flat) - 1, 12).round().long()]
    torch.testing.assert_close(sample, torch.tensor(values).double(), atol=tolerance, rtol=0)
    assert flat.mean().item() == pytest.approx(mean, abs=tolerance)
    assert flat.std(correction=0).item() == pytest.approx(deviation, abs=tolerance)


def test_names_and_shapes_are_the_published_ones(network: PromptIR) -> None:
    lines = [f"{name} {'x'.join(map(str, p.shape))}" for name, p in sorted(network.state_dict().items())]
    assert sum(p.numel() for p in network.parameters()) == 35_592_263
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "a58fa07c762a8849f59460268b26b8bb5beaa999dc771dd88bf170a744103fd7"


@pytest.mark.parametrize("size", ANSWERS)
def test_the_network_answers_as_published(network: PromptIR, size: tuple[int, int]) -> None:
    check(network(photo(*size)), size, 2e-6)


@pytest.mark.parametrize("size", ANSWERS)
def test_the_kernels_answer_as_published(restorer: SparseRestorer, size: tuple[int, int]) -> None:
    check(restorer(photo(*size)), size, 2e-6)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (72, 104)])
def test_any_size_and_batch_equals_the_dense_network(
    network: PromptIR, restorer: SparseRestorer, size: tuple[int, int]
) -> None:
    x = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = SparseRestorer(network, "reference")(x)
    torch.testing.assert_close(restorer(x), expected, atol=5e-6, rtol=0)


def test_the_ticket_is_small(network: PromptIR, tmp_path) -> None:
    dense = {f"net.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": dense, "epoch": 119}, tmp_path / "mirl.ckpt")
    report = convert(tmp_path / "mirl.ckpt", tmp_path / "ticket.safetensors")
    assert report.statistics["mac_density"] == pytest.approx(0.0536, abs=5e-4)
    sizes = [(tmp_path / name).stat().st_size for name in ("mirl.ckpt", "ticket.safetensors")]
    assert sizes[1] <= 0.16 * sizes[0]
    check(
        SparseRestorer.from_pretrained(tmp_path / "ticket.safetensors", "cpu")(photo(64, 64)), (64, 64), 2e-6
    )
