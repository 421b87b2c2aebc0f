from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import settings

from mirl_kernels.core.cpu import Quantity
from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.photos import write_image


@pytest.fixture
def network() -> PromptIR:
    """The tiny run's network, with random weights."""
    torch.manual_seed(0)
    config = settings().network
    assert config is not None
    return PromptIR(config)


@pytest.fixture
def prices() -> dict[str, float]:
    """A nanosecond for whatever a run counts; a busy machine would measure others each time."""
    return {quantity.value: 1e-9 for quantity in Quantity}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: three smooth images and three haze pairs, with dots in their names."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(3):
        y, x = np.mgrid[0:24, 0:40]
        image = np.stack([128 + 100 * np.sin(x / (4 + c) + i) * np.cos(y / (5 + c)) for c in range(3)], -1)
        image = image.clip(0, 255).astype(np.uint8)
        write_image(root / f"clean/{i}.png", image)
        write_image(root / f"haze/target/00{i}_0.8_gt.png", image)
        write_image(
            root / f"haze/input/00{i}_0.8_hazy.png", (image * 0.5 + 100 + rng.integers(3)).astype(np.uint8)
        )
    return root
