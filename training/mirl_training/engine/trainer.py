"""Train a network step by step under one mask: losses, gradients, optimizers and averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.errors import UserError
from mirl_training.engine.fused import fuse, unfuse
from mirl_training.engine.optimizer import optimizers
from mirl_training.engine.selection import TrainingEngine
from mirl_training.engine.settings import Loss, OptimizerName, TrainingPrecision, TrainingSettings
from mirl_training.engine.sparse_layers import use_sparse_layers
from mirl_training.engine.world import World
from mirl_training.pruning.mask import Mask


def psnr_loss(restored: Tensor, clean: Tensor, ceiling: float = 50) -> Tensor:
    """Return minus the mean PSNR in dB of the images of a batch (Chen et al., HINet, CVPRW 2021).

    Args:
        restored: (B, 3, H, W).
        clean: (B, 3, H, W) in [0, 1].
        ceiling: Highest PSNR of an image, in dB. Without it an image that is nearly right would outweigh all
            others.
    """
    return 10 * ((restored - clean).square().mean((1, 2, 3)) + 10 ** (-ceiling / 10)).log10().mean()


def harm(restored: Tensor, degraded: Tensor, clean: Tensor, ceiling: float) -> Tensor:
    """Return the mean square, in dB, of how much further from the clean images the restored ones are.

    Args:
        restored: (B, 3, H, W).
        degraded: (B, 3, H, W) in [0, 1]. An image that is better restored than degraded counts 0.
        clean: (B, 3, H, W) in [0, 1].
        ceiling: Highest PSNR of an image, in dB: what is nearer to the clean one counts as equal to it.
    """
    levels = [
        10 * ((image - clean).square().mean((1, 2, 3)) + 10 ** (-ceiling / 10)).log10()
        for image in (restored, degraded)
    ]
    return (levels[0] - levels[1]).relu().square().mean()


class Diverged(Exception):
    """Report a gradient that is not finite."""


@dataclass(frozen=True)
class Computation:
    """Say what computes a step.

    Attributes:
        engine: "fused" or "reference".
        teacher: The restorer whose results the network is to learn; None for no teacher.
        world: The processes that share a batch.
        distance: The loss of (what the network gives, clean); None takes the one that the settings name, of
            tensors of one shape.
    """

    engine: TrainingEngine = TrainingEngine.REFERENCE
    teacher: Callable[[Tensor], Tensor] | None = None
    world: World = field(default_factory=World)
    distance: Callable[[Tensor, Tensor], Tensor] | None = None


def _check_result(restored: object, clean: Tensor) -> None:
    """Raise UserError unless a network gives an image of the clean one's shape."""
    if not isinstance(restored, Tensor) or restored.shape != clean.shape:
        what = tuple(restored.shape) if isinstance(restored, Tensor) else f"a {type(restored).__name__}"
        raise UserError(
            f"the network gives {what} where the clean images are {tuple(clean.shape)}; expected a tensor of"
            " their shape, or a loss of your own that takes what the network gives"
        )


class Trainer:
    """Train a network where a mask lets it; every round has its own trainer.

    Args:
        network: The network, which is trained in place.
        mask: The mask of its prunable weights.
        settings: The settings of the optimisation.
        computation: The engine, the teacher and the processes of a step.

    Raises:
        MaskError: Mask and network do not fit (on the fused engine).
    """

    def __init__(
        self,
        network: nn.Module,
        mask: Mask,
        settings: TrainingSettings,
        computation: Computation,
    ) -> None:
        self.network, self.settings = network, settings
        self._world, self._teacher = computation.world, computation.teacher
        self._device = next(network.parameters()).device
        self._mask = mask.to(self._device)
        # A PromptIR's fused gradients are zero where the mask is, but for those of the norms' gains.
        is_fused = computation.engine == TrainingEngine.FUSED
        self._masks_gradients = not (is_fused and isinstance(network, PromptIR)) or mask.has_gains
        # A step of Muon is dense, whatever the gradient is.
        self._masks_weights = settings.optimizer == OptimizerName.MUON and mask.nnz < mask.total
        self._optimizers = optimizers(
            network, settings.optimizer, settings.learning_rate, settings.weight_decay
        )
        self._average = None if settings.ema is None else [p.detach().clone() for p in network.parameters()]
        self._steps = 0
        self._is_checked = computation.distance is None
        self._distance: Callable[[Tensor, Tensor], Tensor] = computation.distance or (
            F.l1_loss if settings.loss == Loss.L1 else partial(psnr_loss, ceiling=settings.psnr_ceiling)
        )
        if isinstance(network, PromptIR):
            unfuse(network)
            if is_fused:
                fuse(network, mask)
        elif is_fused:
            use_sparse_layers(network, mask)
        self._parallel: DistributedDataParallel | None = None
        if self._world.ranks > 1:
            # find_unused_parameters also keeps the buckets as they are: rebuilt ones would add up gradients
            # in another order after a restart.
            self._parallel = DistributedDataParallel(network, find_unused_parameters=True)

    def step(self, degraded: Tensor, clean: Tensor, rate: float) -> float:
        """Step the optimizers once, and return the loss.

        Args:
            degraded: (B, 3, H, W) in [0, 1].
            clean: The images that they should become, in the same shape.
            rate: The learning rate.

        Raises:
            Diverged: A gradient is not finite.
        """
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
        """Return the importance of every weight, by the parameter's name.

        It is the mean over batches of (weight * gradient)^2: to first order, the square of what the removal
        of the weight would change the loss by (Molchanov et al., CVPR 2019).

        Args:
            batches: Pairs of (degraded, clean), each (B, 3, H, W) in [0, 1].

        Raises:
            Diverged: A value is not finite.
        """
        sums = {n: torch.zeros_like(p) for n, p in self.network.named_parameters()}
        for degraded, clean in batches:
            self._gradients(degraded, clean)
            for n, p in self.network.named_parameters():
                if p.grad is not None:
                    sums[n].addcmul_(p.grad, p.grad)
        result = {n: p.detach().square() * sums[n] / len(batches) for n, p in self.network.named_parameters()}
        if not all(values.isfinite().all() for values in result.values()):
            raise Diverged("a gradient is not finite")
        return result

    def _gradients(self, degraded: Tensor, clean: Tensor) -> float:
        """Leave the gradients of all processes' parts of the batch in the parameters; return the loss."""
        self.network.zero_grad(set_to_none=True)
        loss = 0.0
        parts = list(zip(*(t.chunk(self.settings.accumulate) for t in (degraded, clean)), strict=True))
        for i, pair in enumerate(parts):
            is_last = i == len(parts) - 1  # gradients are shared with other processes once
            with nullcontext() if is_last or not self._parallel else self._parallel.no_sync():
                part = self._loss(*(t.to(self._device) for t in pair)) * (len(pair[0]) / len(degraded))
                part.backward()
            loss += part.item()
        if self._masks_gradients:
            self._mask.apply_to_gradients(self.network)
        return self._world.mean(loss)

    def _loss(self, degraded: Tensor, clean: Tensor) -> Tensor:
        is_bfloat16 = self.settings.precision_on(self._device.type) == TrainingPrecision.BFLOAT16
        dtype = torch.bfloat16 if is_bfloat16 else torch.float32
        with torch.autocast(self._device.type, dtype, enabled=is_bfloat16):
            restored = (self._parallel or self.network)(degraded)
        if self._is_checked:
            _check_result(restored, clean)
        restored = restored.float() if isinstance(restored, Tensor) else restored
        loss = self._distance(restored, clean)
        if self.settings.harm_weight:
            worse = harm(restored, degraded, clean, self.settings.psnr_ceiling)
            loss = loss + self.settings.harm_weight * worse
        if self._teacher is not None:
            with torch.no_grad():
                taught = self._teacher(degraded.cpu()).to(self._device)
            weight = self.settings.teacher_weight
            loss = (1 - weight) * loss + weight * self._distance(restored, taught)
        return loss

    @property
    def weights(self) -> dict[str, Tensor]:
        """Return a state dict of what was learnt, averaged where the settings say so."""
        state = {
            k: v.detach() if isinstance(v, Tensor) else v  # a module's extra state may be anything
            for k, v in self.network.state_dict().items()
        }
        if self._average is not None:
            average = dict(zip(map(id, self.network.parameters()), self._average, strict=True))
            names = self.network.named_parameters(remove_duplicate=False)  # shared ones have several
            state |= {n: average[id(p)] for n, p in names}
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on, but the learning rate and the batch."""
        return {
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "average": self._average,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        for optimizer, values in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        average = state["average"]
        self._average = None if average is None else [values.to(self._device) for values in average]
        self._steps = state["steps"]
