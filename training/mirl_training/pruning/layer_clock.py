"""Tell what masks of any network cost: its convolutions, linear layers and fused blocks, one by one."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from mirl_kernels.core import cpu
from mirl_sparse.performance.cost import CostModel, dense_quantities
from mirl_sparse.sparsification.cpu import op_quantities
from mirl_sparse.sparsification.layers import sparse_layer
from mirl_sparse.sparsification.recording import Example, record_calls
from mirl_sparse.sparsification.target import BlockKind, CallShape, LayerForms, Refusal
from mirl_training.pruning.latency import Channels, per_row, per_weight
from mirl_training.pruning.mask import Mask


@dataclass(frozen=True)
class _Unit:
    """Hold a layer, or a block that is fused whole (of a kind), and how it is called for one image."""

    module: nn.Module
    calls: list[CallShape]
    kind: BlockKind | None = None


class LayerClock:
    """Tell what masks of any network cost; see `Clock`.

    The seconds are those of the layers and blocks that `mirl_sparse.sparsify` has sparse forms of, each in
    the faster of its two forms. What lies between them takes the same time whatever the mask is, and does not
    count. Rows of convolutions and linear layers are channels: what a row costs beside its weights is saved
    when the last of these goes.

    Args:
        network: The network; its shapes count, not its values.
        example: The arguments of one call, such as ``(torch.rand(1, 3, 256, 256),)``.
        model: Prices of the machine.
        layers: The sparse forms of layers, as targets of ``sparsify`` hold them.
        blocks: The kinds of blocks that are fused.

    Raises:
        UserError: The network does not take the example.
    """

    def __init__(
        self,
        network: nn.Module,
        example: tuple[object, ...],
        model: CostModel,
        layers: LayerForms,
        blocks: Iterable[BlockKind],
    ) -> None:
        self._network, self._model, self._forms = network, model, layers
        self._scratch = copy.deepcopy(network).eval().requires_grad_(False)
        self._calls = record_calls(self._scratch, Example(example, {})).calls
        self._units = list(self._find_units(self._scratch, tuple(blocks), set()))

    @property
    def network(self) -> nn.Module:
        """Return the network."""
        return self._network

    def _find_units(
        self, module: nn.Module, blocks: tuple[BlockKind, ...], visited: set[nn.Module]
    ) -> Iterator[_Unit]:
        if module in visited:
            return
        visited.add(module)
        calls = self._calls.get(id(module))
        kinds = (kind for kind in blocks if isinstance(kind.recognise(module), tuple))
        if calls and (kind := next(kinds, None)):
            yield _Unit(module, calls, kind)
        elif calls and type(module) in self._forms:
            yield _Unit(module, calls)
        else:
            for child in module.children():
                yield from self._find_units(child, blocks, visited)

    @torch.no_grad()
    def seconds(self, mask: Mask) -> float:
        """Return the predicted seconds of the layers and blocks, by the weights that a mask keeps."""
        for name, keep in mask.alive.items():
            self._scratch.get_parameter(name).copy_(keep)
        return sum(map(self._unit_seconds, self._units))

    def _unit_seconds(self, unit: _Unit) -> float:
        if unit.kind is not None:
            return self._sparse_seconds([unit.kind.fuse(unit.kind.recognise(unit.module))], unit.calls)
        quantities = ((dense_quantities(unit.module, shape), times) for shape, times in unit.calls)
        dense = sum(times * self._model.seconds(each) for each, times in quantities)
        form = sparse_layer(unit.module, self._forms)
        return dense if isinstance(form, Refusal) else min(dense, self._sparse_seconds(form.ops, unit.calls))

    def _sparse_seconds(self, ops: Iterable[nn.Module], calls: list[CallShape]) -> float:
        return sum(
            times * self._model.seconds(op_quantities(op, shape)) for op in ops for shape, times in calls
        )

    def seconds_per_weight(self) -> dict[str, float]:
        """Return the seconds that one weight of a convolution or linear layer adds; of no call, nothing."""
        prices: dict[str, float] = defaultdict(float)  # two layers may share a weight
        for name, _, each, _ in self._layers():
            prices[name] += each
        return dict(prices)

    def channels(self) -> list[Channels]:
        """Return the rows of all convolutions and linear layers."""
        return [
            Channels(
                torch.full((rows,), row, dtype=torch.float64),
                {name: lambda weight: weight.flatten(1)[None]},
            )
            for name, rows, _, row in self._layers()
        ]

    def _layers(self) -> Iterator[tuple[str, int, float, float]]:
        """Yield of each layer the name of its weight, its rows, and the seconds of a weight and of a row."""
        of_unit = {layer: unit.calls for unit in self._units for layer in unit.module.modules()}
        names = {id(p): name for name, p in self._scratch.named_parameters()}
        for module in self._scratch.modules():
            if not isinstance(module, (nn.Conv2d, nn.Linear)) or id(module.weight) not in names:
                continue
            is_tap = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
            each = row = 0.0
            # A block may use the weights of its layers without a call; its features are of one size then.
            for shape, times in self._calls.get(id(module), of_unit.get(module, [])):
                vectors, groups = cpu.pixel_groups(1, _results(module, shape))
                each += times * per_weight(self._model, vectors, groups, is_tap)
                row += times * per_row(self._model, vectors, groups)
            yield names[id(module.weight)], len(module.weight), each, row


def _results(layer: nn.Conv2d | nn.Linear, shape: tuple[int, ...]) -> int:
    """Return how many pixels or tokens a layer computes for an input of a shape."""
    if isinstance(layer, nn.Linear):
        return prod(shape[:-1])
    batch, _, height, width = shape if len(shape) == 4 else (1, *shape)
    return batch * -(-height // layer.stride[0]) * -(-width // layer.stride[1])
