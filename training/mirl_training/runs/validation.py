"""Validate weights on the held-back pairs, and time the network that holds them."""

from __future__ import annotations

import math
import time
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from mirl_sparse.choices import BackendName
from mirl_training.data.training_data import Pairs
from mirl_training.runs.architecture import Architecture

_SIDE, _RUNS = 256, 5  # pixels each way of the image that is timed, and how often
_FLOOR = 1e-6  # mean squared error: an image counts for at most 60 dB


class Validator:
    """Restore held-back images with the weights of a network that trains.

    Args:
        architecture: The network's architecture.
        pairs: Pairs by task, (degraded, clean), each (1, 3, H, W) in [0, 1].
        backend: Backend of the restorer.

    Attributes:
        network: The network with the weights that were validated last. Its values may be overwritten between
            validations.
        pairs: The same pairs.
    """

    def __init__(self, architecture: Architecture, pairs: Pairs, backend: BackendName) -> None:
        self.network, self.pairs = architecture.empty(), pairs
        self._restore = architecture.follow(self.network, backend)
        self._fast = partial(architecture.restorer, self.network, backend)

    @torch.no_grad()
    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Return the mean PSNR of the 8-bit results, in dB, by task.

        An image counts for at most 60 dB: a clean photo may come back without any error.

        Args:
            weights: A state dict of the network.
        """
        self.network.load_state_dict(weights)
        return {task: self._mean_psnr(task) for task in self.pairs}

    def _mean_psnr(self, task: str) -> float:
        scores = []
        for degraded, clean in self.pairs[task]:
            restored = (self._restore(degraded).clamp(0, 1) * 255).round() / 255
            scores.append(-10 * math.log10(max(F.mse_loss(restored, clean).item(), _FLOOR)))
        return sum(scores) / len(scores)

    def seconds_per_image(self) -> float:
        """Return the median seconds for 256x256 pixels, with the weights that were validated last."""
        image, times, restore = torch.rand(1, 3, _SIDE, _SIDE), [], self._fast()
        for _ in range(_RUNS + 1):
            began = time.perf_counter()
            restore(image)
            times.append(time.perf_counter() - began)
        return median(times[1:])
