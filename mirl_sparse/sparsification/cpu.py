"""Define the CPU as a target: float32, layers chosen by the cost model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mirl_kernels.core import cpu
from mirl_kernels.ops.linear import PackedLinear
from mirl_kernels.ops.swin import PackedSwin
from mirl_sparse.performance.cost import CostModel, dense_quantities
from mirl_sparse.performance.prices import cost_model
from mirl_sparse.sparsification.blocks import IMAGE_BLOCKS
from mirl_sparse.sparsification.layers import CPU_LAYERS
from mirl_sparse.sparsification.target import BlockKind, CallShape, LayerForm, LayerForms, is_ordinary
from mirl_sparse.sparsification.window_blocks import WINDOW_BLOCKS, FusedLeWin

CPU_BLOCKS = (*IMAGE_BLOCKS, *WINDOW_BLOCKS)


class CpuTarget:
    """Run networks on the CPU in float32; see `SparsificationTarget` for the attributes.

    Blocks are always fused. Layers are swapped where the prices say that the sparse form is faster.

    Args:
        prices: The prices of the cost model. None takes this machine's, and measures them when the first
            layer is compared.

    Raises:
        BackendError: The C++ kernels were not built, or this processor cannot run them.
    """

    backend = "cpu"
    precision = "float32"
    device = torch.device("cpu")
    layers: LayerForms = CPU_LAYERS
    blocks: Sequence[BlockKind] = CPU_BLOCKS
    tolerance = 1e-4
    doubt = ""
    launch_errors: tuple[type[Exception], ...] = ()

    def __init__(self, prices: CostModel | None = None) -> None:
        cpu.load_library()
        self._prices = prices

    @cached_property
    def prices(self) -> CostModel:
        """Return the prices by which layers are chosen."""
        return cost_model() if self._prices is None else self._prices

    def prepare(self, value: Any) -> Any:
        """Return a network or an input as it is."""
        return value

    def place(self, network: nn.Module) -> nn.Module:
        """Return the network as it is."""
        return network

    def packable(self, module: nn.Module) -> nn.Module:
        """Return the module as it is."""
        return module

    def takes(self, x: Tensor) -> bool:
        """Return whether x is an ordinary float32 tensor on the CPU that holds something."""
        return is_ordinary(x, torch.float32, "cpu")

    def run(self, module: nn.Module, *inputs: Any, **named: Any) -> Any:
        """Run a module on its inputs."""
        return module(*inputs, **named)

    def seconds(self, dense: nn.Module, form: LayerForm, shape: tuple[int, ...]) -> tuple[float, float]:
        """Return the seconds that the cost model predicts; see `SparsificationTarget.seconds`."""
        sparse = sum(self.prices.seconds(op_quantities(op, shape)) for op in form.ops)
        return sparse, self.prices.seconds(dense_quantities(dense, shape))

    def block_pays(self, dense: nn.Module, fused: nn.Module, calls: Sequence[CallShape]) -> bool:
        """Return True: blocks are always fused."""
        return True


def op_quantities(op: nn.Module, shape: tuple[int, ...]) -> Counter[str]:
    """Return what an op does for an input of a shape, as the cost model counts it."""
    if isinstance(op, (PackedLinear, PackedSwin, FusedLeWin)):
        return op.quantities(*shape[:-1])
    assert isinstance(op, cpu.Packed)
    batch, _, height, width = shape if len(shape) == 4 else (1, *shape)
    return op.quantities(batch, height, width)
