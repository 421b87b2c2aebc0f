"""Muon: steps of orthogonalised momentum for whole matrices, which need fewer steps than AdamW's.

Jordan et al. 2024 (the method and the polynomial), Liu et al. 2025, arXiv 2502.16982, section 2.2 (the scale that lets it
share AdamW's learning rate and weight decay).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mirl_sparse.architectures.promptir.network import PromptIR

_QUINTIC = 3.4445, -4.7750, 2.0315  # steep at 0, and keeps singular values within 0.7 to 1.2
_ITERATIONS = 5


def orthogonalised(matrices: Tensor) -> Tensor:
    """(B, M, N) with all singular values brought near 1, by five steps of the Newton-Schulz iteration."""
    a, b, c = _QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-12)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(a * x, torch.baddbmm(b * gram, gram, gram, alpha=c), x)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Convolutions' weights (O, I, k, k) are stepped as matrices (O, I * k * k), those of one shape together. Rows and columns
    of zeros, a pruned channel's, stay zeros: they are left out, which changes nothing but the time."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
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


def optimizers(network: PromptIR, name: str, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """AdamW of all parameters; or, for "muon", Muon of the matrices between the network's first and last layer, and AdamW
    of the rest, as its authors use it."""
    matrices = [
        p
        for n, p in network.named_parameters()
        if name == "muon" and p.ndim == 4 and p.shape[1] > 1 and not n.startswith(("patch_embed.", "output."))
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in network.parameters() if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, fused=True)
    ]
    if matrices:
        found.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
    return found
