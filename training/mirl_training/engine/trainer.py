"""What one step of training does: losses, gradients, optimizers and averages of one network under one mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_training.engine.fused import fuse, unfuse
from mirl_training.engine.optimizer import optimizers
from mirl_training.engine.world import World
from mirl_training.pruning.masks import Mask
from mirl_training.runs.config import TrainingSettings


def psnr_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Minus the mean PSNR in dB of the images of a batch, (B, 3, H, W) in [0, 1] (Chen et al., HINet, CVPRW 2021)."""
    return 10 * ((restored - clean).square().mean((1, 2, 3)) + _FLOOR).log10().mean()


_FLOOR = 1e-5  # no image is worth more than 50 dB; rounding to 8 bits allows 59
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "psnr": psnr_loss}


class Diverged(Exception):
    """A gradient that is no number any more."""


class Trainer:
    """Trains ``network`` where the mask lets it, on one engine ("fused" or "reference"); one of them per round.

    ``teacher`` restores the degraded images as the network is to learn to; ``world`` are the processes that share a batch.
    """

    def __init__(
        self,
        network: PromptIR,
        mask: Mask,
        settings: TrainingSettings,
        peak: float,
        engine: str = "reference",
        teacher: SparseRestorer | None = None,
        world: World | None = None,
    ) -> None:
        self.network, self.settings = network, settings
        self._world, self._teacher = world or World(), teacher
        self._device = next(network.parameters()).device
        self._mask = mask.to(self._device)
        # The fused kernels' gradients are zero where the mask is, but for those of the norms' gains.
        self._masks_gradients = engine == "reference" or mask.has_gains
        # A step of Muon is dense, whatever the gradient is.
        self._masks_weights = settings.optimizer == "muon" and mask.kept < mask.total
        self._optimizers = optimizers(network, settings.optimizer, peak, settings.weight_decay)
        self._average = None if settings.ema is None else [p.detach().clone() for p in network.parameters()]
        self._steps = 0
        if engine == "fused":
            fuse(network, mask)
        else:
            unfuse(network)
        self._parallel: DistributedDataParallel | None = None
        if self._world.ranks > 1:
            # Also keeps the buckets as they are: rebuilt ones would add up gradients in another order after a restart.
            self._parallel = DistributedDataParallel(network, find_unused_parameters=True)

    def step(self, degraded: Tensor, clean: Tensor, rate: float) -> float:
        """One step of the optimizers at a learning rate, on (B, 3, H, W) in [0, 1] and what they should become; returns the
        loss. Raises Diverged when a gradient is not finite."""
        loss = self._gradients(degraded, clean)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm or math.inf)
        if not math.isfinite(norm.item()):
            raise Diverged(f"loss {loss}")
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        if self._masks_weights:
            self._mask.apply(self.network)
        self._steps += 1
        if self._average is not None and self.settings.ema is not None:
            decay = min(self.settings.ema, self._steps / (self._steps + 9))  # soon forgets where it began
            with torch.no_grad():
                torch._foreach_lerp_(self._average, list(self.network.parameters()), 1 - decay)
        return loss

    def importance(self, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Per parameter the mean over batches of (weight * gradient)^2: to first order, the square of what the removal of each
        weight would change the loss by (Molchanov et al., CVPR 2019). Raises Diverged where that is not finite."""
        sums = {n: torch.zeros_like(p) for n, p in self.network.named_parameters()}
        for degraded, clean in batches:
            self._gradients(degraded, clean)
            for n, p in self.network.named_parameters():
                if p.grad is not None:
                    sums[n].addcmul_(p.grad, p.grad)
        found = {n: p.detach().square() * sums[n] / len(batches) for n, p in self.network.named_parameters()}
        if not all(values.isfinite().all() for values in found.values()):
            raise Diverged("a gradient is not finite")
        return found

    def _gradients(self, degraded: Tensor, clean: Tensor) -> float:
        """Leave the loss's gradients in the parameters, of all processes' parts of the batch; returns the loss."""
        self.network.zero_grad(set_to_none=True)
        loss = 0.0
        parts = list(zip(*(t.chunk(self.settings.accumulate) for t in (degraded, clean)), strict=True))
        for i, pair in enumerate(parts):
            shares = i == len(parts) - 1  # gradients with other processes, once
            with nullcontext() if shares or not self._parallel else self._parallel.no_sync():
                part = self._loss(*(t.to(self._device) for t in pair)) * (len(pair[0]) / len(degraded))
                part.backward()
            loss += part.item()
        if self._masks_gradients:
            self._mask.apply_to_gradients(self.network)
        return self._world.mean(loss)

    def _loss(self, degraded: Tensor, clean: Tensor) -> Tensor:
        precision = (
            torch.bfloat16 if self.settings.computes_in(self._device.type) == "bfloat16" else torch.float32
        )
        with torch.autocast(self._device.type, precision, enabled=precision != torch.float32):
            restored = (self._parallel or self.network)(degraded)
        distance = _LOSSES[self.settings.loss]
        loss = distance(restored.float(), clean)
        if self._teacher is not None:
            with torch.no_grad():
                taught = self._teacher(degraded.cpu()).to(self._device)
            weight = self.settings.teacher_weight
            loss = (1 - weight) * loss + weight * distance(restored.float(), taught)
        return loss

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the network has learnt, averaged where the settings say so; its state dict's names."""
        state = {k: v.detach() for k, v in self.network.state_dict().items()}
        if self._average is not None:
            names = (n for n, _ in self.network.named_parameters())
            state |= dict(zip(names, self._average, strict=True))
        return state

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, but the learning rate and the batch."""
        return {
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "average": self._average,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.network.load_state_dict(state["network"])
        for optimizer, values in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        average = state["average"]
        self._average = None if average is None else [values.to(self._device) for values in average]
        self._steps = state["steps"]
