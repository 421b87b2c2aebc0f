"""Choose the modules of a network that pay as sparse forms, and set those: the passes of `sparsify`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mirl_sparse.sparsification.comparison import NOMINAL_SIDE, nominal_shape
from mirl_sparse.sparsification.forms import block_form, layer_form
from mirl_sparse.sparsification.forward import SequentialForward, SparseForward, absorbed
from mirl_sparse.sparsification.layers import LAYER_TYPES, count_nonzero, prunable_weights
from mirl_sparse.sparsification.recording import Recording
from mirl_sparse.sparsification.report import DENSE, LAYER_BY_LAYER, SparsifiedLayer
from mirl_sparse.sparsification.target import BlockKind, CallShape, Refusal, SparsificationTarget

_NEVER_CALLED = "the example input never calls it"
_CALLED_OTHERWISE = "it is called with more than its input, or by name"
_KEPT = "keep_dense names it"
_PART_KEPT = "keep_dense names a part of it"


class Sparsification:
    """Set the sparse forms of the modules of one network.

    Args:
        target: The target that the network is to run on.
        recording: The recording of an example input, None without one.
        keep_dense: Names of modules that stay dense, with all that is inside.

    Attributes:
        rows: Rows of the report.
        forwards: The forwards that were set, by the module's name.
    """

    def __init__(
        self, target: SparsificationTarget, recording: Recording | None, keep_dense: Collection[str]
    ) -> None:
        self._target, self._recording, self._keep_dense = target, recording, keep_dense
        self._kept: set[int] = set()
        self.rows: list[SparsifiedLayer] = []
        self.forwards: dict[str, SparseForward] = {}
        self._visited: set[int] = set()  # a module may be used in several places

    def run(self, network: nn.Module) -> nn.Module:
        """Set the sparse forms in a network, and return it on its target."""
        kept = (m for name in self._keep_dense for m in network.get_submodule(name).modules())
        self._kept = set(map(id, kept))
        self._visit(network, "")
        placed = self._target.place(network)
        for forward in self.forwards.values():
            forward.settle()
        return placed

    def revert(self, name: str, by: float) -> None:
        """Make a module dense again.

        Args:
            name: Its name.
            by: By how much its sparse form differs on what it gets from the example input.
        """
        self.forwards.pop(name).remove()
        reason = f"its sparse form differs by {by:.0e} on what it gets from the example input"
        inside = f"{name}." if name else ""
        self.rows = [
            replace(row, implementation=DENSE, reason=reason)
            if row.name == name or (inside and row.name.startswith(inside) and row.swapped)
            else row
            for row in self.rows
        ]

    def _visit(self, m: nn.Module, name: str) -> None:
        if id(m) not in self._visited:
            self._visited.add(id(m))
            self._swap(m, name)

    def _swap(self, m: nn.Module, name: str) -> None:
        parameters = [p for p in m.parameters(recurse=False) if p.numel()]
        if isinstance(m, torch.jit.ScriptModule):
            self._add(
                m, name, list(m.parameters()), DENSE, "it is TorchScript, whose layers cannot be swapped"
            )
            return
        reason = None
        for kind in self._target.blocks:
            if kind.recognise(m) is None:
                continue
            refusal = self._fuse(m, name, kind)
            if refusal is None:
                return
            reason = reason or f"not fused as {kind.name}: {refusal.reason}"
        if reason is not None:
            self._add(m, name, parameters, LAYER_BY_LAYER, reason)
        elif parameters and not self._swap_layer(m, name, parameters):
            return
        self._visit_children(m, name)

    def _fuse(self, m: nn.Module, name: str, kind: BlockKind) -> Refusal | None:
        """Fuse a block, or return why it is not to be fused."""
        if reason := self._use_refusal(m, kind.positional):
            return Refusal(reason)
        if any(id(part) in self._kept for part in m.modules()):
            return Refusal(_PART_KEPT)
        fused = block_form(m, self._target, kind)
        if isinstance(fused, Refusal):
            return fused
        if self._recording is None:
            nominal = kind.arguments(kind.recognise(m), 1, NOMINAL_SIDE, NOMINAL_SIDE)[0]
            calls = [CallShape(tuple(nominal.shape), 1)]
        elif not (calls := self._recording.calls.get(id(m), [])):
            return Refusal(_NEVER_CALLED)
        if not self._target.block_pays(m, fused, calls):
            return Refusal("layer by layer is faster")
        for part in kind.parts:
            where = ".".join(filter(None, (name, part.name)))
            module = m.get_submodule(part.name)
            self._add(module, where, prunable_weights(module), part.implementation, part.reason)
        self._visited |= set(map(id, m.modules()))
        self.forwards[name] = SparseForward(m, self._target, kind, self._target.place(fused))
        return None

    def _use_refusal(self, m: nn.Module, positional: Collection[int] = (1,)) -> str | None:
        """Return why a module cannot be one op in this network, whatever it computes.

        Args:
            m: The module.
            positional: Numbers of arguments that the op takes.
        """
        if id(m) in self._kept:
            return _KEPT
        if "forward" in vars(m):
            return "it has its own forward()"
        if (
            self._recording is not None
            and not self._recording.positional.get(id(m), set()).issubset(positional)
            and not isinstance(m, nn.MultiheadAttention)
        ):
            return _CALLED_OTHERWISE
        return None

    def _visit_children(self, m: nn.Module, name: str) -> None:
        for child_name, child in m.named_children():
            self._visit(child, f"{name}.{child_name}" if name else child_name)
        if type(m).forward is nn.Sequential.forward and "forward" not in vars(m):
            self._absorb_followers(m, name)

    def _absorb_followers(self, m: nn.Module, name: str) -> None:
        """Let the layers of an nn.Sequential do the work of activations and pixel shuffles behind them."""
        assert isinstance(m, nn.Sequential)
        names, children = list(m._modules), list(m)
        followers: dict[int, int] = {}
        for i, child in enumerate(children):
            forward = vars(child).get("forward")
            if not isinstance(forward, SparseForward) or type(child).__call__ is not nn.Module.__call__:
                continue
            behind = children[i + 1 :]
            while behind and absorbed(forward.op, behind) is None:
                behind.pop()
            if behind:
                followers[i] = len(behind)
                self._add_followers(f"{name}.{names[i]}" if name else names[i], behind)
        if followers:
            SequentialForward(m, followers)

    def _add_followers(self, name: str, followers: Sequence[nn.Module]) -> None:
        """Name what a layer absorbs in its row of the report."""
        for i, row in enumerate(self.rows):
            if row.name == name:
                parts = (row.implementation, *(type(follower).__name__ for follower in followers))
                self.rows[i] = replace(row, implementation=" + ".join(parts))

    def _swap_layer(self, m: nn.Module, name: str, parameters: Sequence[Tensor]) -> bool:
        """Set the sparse form of a module with parameters, or put the reason why not into the report.

        Returns:
            Whether the modules inside are to be visited, too.
        """
        reason = self._use_refusal(m)
        form = Refusal(reason) if reason else layer_form(m, self._target)
        if isinstance(form, Refusal):
            self._add(m, name, parameters, DENSE, form.reason)
            return not isinstance(m, LAYER_TYPES)
        weights = prunable_weights(m)
        if self._recording is not None and id(m) not in self._recording.calls:
            self._add(m, name, weights, DENSE, _NEVER_CALLED)
            return False
        sparse = dense = 0.0
        for shape, times in self._shapes(m):
            each = self._target.seconds(m, form, shape)
            sparse, dense = sparse + times * each[0], dense + times * each[1]
        if sparse > dense:
            self._add(m, name, weights, DENSE, "dense is faster", sparse * 1e3, dense * 1e3)
            return False
        self._add(m, name, weights, form.implementation, "sparse is faster", sparse * 1e3, dense * 1e3)
        self.forwards[name] = SparseForward(m, self._target, None, self._target.place(form.module))
        return False

    def _shapes(self, m: nn.Module) -> list[CallShape]:
        """Return the calls for which a layer is chosen."""
        return [CallShape(nominal_shape(m), 1)] if self._recording is None else self._recording.calls[id(m)]

    def _add(
        self,
        m: nn.Module,
        name: str,
        weights: Sequence[Tensor],
        implementation: str,
        reason: str,
        *times: float,
    ) -> None:
        """Add a row to the report; ``times`` are ms of the sparse and of the dense form."""
        counts = count_nonzero(weights)
        self.rows.append(SparsifiedLayer(name, type(m).__name__, *counts, implementation, reason, *times))
