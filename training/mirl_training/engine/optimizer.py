"""Step whole matrices by Muon, that is by orthogonalised momentum, which needs fewer steps than AdamW.

The method and the polynomial are from Jordan et al. 2024. The scale that lets Muon share AdamW's learning
rate and weight decay is from Liu et al. 2025, arXiv 2502.16982, section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mirl_training.engine.settings import OptimizerName

_QUINTIC = 3.4445, -4.7750, 2.0315  # steep at 0, and keeps singular values within 0.7 to 1.2
_ITERATIONS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return matrices (B, M, N) with all singular values brought near 1.

    Five steps of the Newton-Schulz iteration bring a value within 0.7 to 1.2, unless it is tiny beside the
    largest one.
    """
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(a * x, torch.baddbmm(b * gram, gram, gram, alpha=c), x)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Step the weights of convolutions (O, I, k, k) as matrices (O, I * k * k), those of one shape together.

    Rows and columns of zeros, those of pruned channels, stay zeros. They are left out, which changes nothing
    but the time.

    Args:
        params: The weights.
        lr: Learning rate.
        weight_decay: Decay per step, relative to the learning rate.
        momentum: Nesterov's momentum, 0 to 1.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient; ``closure`` is not called."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
            for p in (p for p in group["params"] if p.grad is not None):
                past = self.state[p].setdefault("momentum", torch.zeros_like(p))
                past.mul_(group["momentum"]).add_(p.grad)
                direction = past.mul(group["momentum"]).add_(p.grad).flatten(1)
                sizes = direction.abs()
                rows, columns = (sizes.amax(axis).nonzero()[:, 0] for axis in (1, 0))
                if len(rows) < len(direction):
                    direction = direction.index_select(0, rows)
                if len(columns) < direction.shape[1]:
                    direction = direction.index_select(1, columns)
                alike.setdefault(direction.shape, []).append((p, rows, columns, direction))
            for steps in alike.values():
                updates = orthogonalised(torch.stack([direction for *_, direction in steps]))
                for (p, rows, columns, _), update in zip(steps, updates, strict=True):
                    matrix = p.mul_(1 - group["lr"] * group["weight_decay"]).view(len(p), -1)
                    if len(columns) < matrix.shape[1]:
                        update = update.new_zeros(len(update), matrix.shape[1]).index_copy_(
                            1, columns, update
                        )
                    matrix.index_add_(0, rows, update, alpha=-0.2 * max(matrix.shape) ** 0.5 * group["lr"])


def optimizers(network: nn.Module, name: str, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together step every parameter of a network once.

    Args:
        network: The network whose parameters are stepped.
        name: An `OptimizerName`. "adamw" is AdamW of all parameters. "muon" is Muon of the matrices between
            the first and the last layer, and AdamW of the rest, as Muon's authors use it.
        lr: Learning rate.
        weight_decay: Decay per step, relative to the learning rate.
    """
    convolutions = [p for p in network.parameters() if p.ndim == 4 and len(p) > 1]  # no gains (1, C, 1, 1)
    matrices = [p for p in convolutions[1:-1] if p.shape[1] > 1] if name == OptimizerName.MUON else []
    chosen = {id(p) for p in matrices}
    rest = [p for p in network.parameters() if id(p) not in chosen]
    result: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, fused=True)
    ]
    if matrices:
        result.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
    return result
