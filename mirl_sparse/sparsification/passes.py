"""Record how a network calls its modules, swap them, and compare the results: the passes of `sparsify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from mirl_sparse.errors import UserError
from mirl_sparse.sparsification.comparison import (
    NOMINAL_SIDE,
    copied_arguments,
    difference,
    noise,
    nominal_shape,
    probes,
    tensors,
)
from mirl_sparse.sparsification.layers import (
    LAYER_TYPES,
    absorb,
    count_nonzero,
    has_hooks,
    prunable_weights,
    sparse_layer,
)
from mirl_sparse.sparsification.report import DENSE, LAYER_BY_LAYER, SparsifiedLayer, SparsityReport
from mirl_sparse.sparsification.target import BlockKind, CallShape, LayerForm, Refusal, SparsificationTarget

_NEVER_CALLED = "the example input never calls it"
_CALLED_OTHERWISE = "it is called with more than its input, or by name"


@dataclass(frozen=True)
class Recording:
    """Hold what an example input shows of a network.

    Attributes:
        calls: Input shapes of each module that was called, by the module's id.
        called_otherwise: Ids of the modules that were called otherwise than with one positional argument.
        results: Copies of the tensors in the network's result.
    """

    calls: Mapping[int, list[CallShape]]
    called_otherwise: frozenset[int]
    results: list[Tensor]


def record_calls(network: nn.Module, example: tuple[Any, ...]) -> Recording:
    """Run a network on an example input and record how it calls its modules.

    Args:
        network: The dense network.
        example: The network's arguments, which are copied.

    Raises:
        UserError: There is no tensor in the network's result.
    """
    shapes: dict[int, Counter[tuple[int, ...]]] = {}
    called_otherwise: set[int] = set()

    def note(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        first = next((x for x in (*args, *named.values()) if isinstance(x, Tensor)), None)
        if first is not None:
            shapes.setdefault(id(module), Counter())[tuple(first.shape)] += 1
        if named or len(args) != 1:
            called_otherwise.add(id(module))

    hooks = [m.register_forward_pre_hook(note, with_kwargs=True) for m in network.modules()]
    try:
        result = network(*copied_arguments(example))
    finally:
        for hook in hooks:
            hook.remove()
    results = [t.clone() for t in tensors(result)]  # which the network may write to again
    if not results:
        raise UserError(
            f"the network gives {type(result).__name__} for the example input; expected tensors, to compare"
            " them"
        )
    calls = {key: [CallShape(*item) for item in counter.items()] for key, counter in shapes.items()}
    return Recording(calls, frozenset(called_otherwise), results)


def disable_fast_paths(network: nn.Module) -> None:
    """Turn off the fast paths of PyTorch's transformer encoders, which read weights that will be packed."""
    for m in network.modules():
        if isinstance(m, nn.TransformerEncoderLayer):
            m.activation_relu_or_gelu = 0
        if isinstance(m, nn.TransformerEncoder):
            m.use_nested_tensor = False


class Sparsification:
    """Swap the modules of one network for their sparse forms.

    Args:
        target: The target that the network is to run on.
        recording: The recording of an example input, None without one.
        reads: Modules that stay as they are because the network reads an attribute of theirs: the attribute,
            by the module's name.
    """

    def __init__(
        self, target: SparsificationTarget, recording: Recording | None, reads: Mapping[str, str]
    ) -> None:
        self._target, self._recording, self._reads = target, recording, reads
        self._names: dict[int, str] = {}  # of swapped modules, by the ids of what takes their place
        self._rows: list[SparsifiedLayer] = []
        self._visited: dict[int, nn.Module] = {}  # a module may be used in several places

    def run(self, network: nn.Module) -> nn.Module:
        """Swap the modules of a network in place; return it with its ``report``, on its target."""
        sparsified = self._target.place(self._visit(network, ""))
        sparsified.report = SparsityReport(tuple(self._rows))  # type: ignore[assignment]
        return sparsified

    def read_attribute(self, sparsified: nn.Module, example: tuple[Any, ...]) -> tuple[str, str] | None:
        """Compare a sparsified network with the recorded results.

        Args:
            sparsified: The network that `run` returned.
            example: The arguments of the recording.

        Returns:
            None where the results are the same. Where the network reads an attribute of a swapped module: the
            module's name and the attribute.

        Raises:
            UserError: The results differ by more than the target's tolerance.
        """
        assert self._recording is not None
        try:
            results = list(tensors(self._target.run(sparsified, *copied_arguments(example))))
        except AttributeError as error:
            name = self._names.get(id(error.obj))
            if name is None or name in self._reads:
                raise
            return name, error.name or "attributes"
        by = difference(self._recording.results, results)
        if by > self._target.tolerance:
            raise UserError(
                f"the sparsified network differs from the dense one by {by:.1e} of its largest value for the"
                f" example input; expected at most {self._target.tolerance:.0e}: it may draw random numbers,"
                f" or depend on more than its layers' results{self._target.doubt}"
            )
        return None

    def _visit(self, m: nn.Module, name: str) -> nn.Module:
        """Return the module that takes the place of m."""
        if id(m) not in self._visited:
            self._visited[id(m)] = m  # else a module that contains itself would never end
            self._visited[id(m)] = self._swap(m, name)
        return self._visited[id(m)]

    def _swap(self, m: nn.Module, name: str) -> nn.Module:
        parameters = [p for p in m.parameters(recurse=False) if p.numel()]
        reason = None
        for kind in self._target.blocks:
            weights = kind.recognise(m)
            if weights is None:
                continue
            fused = self._fuse(m, name, kind, weights)
            if not isinstance(fused, Refusal):
                return fused
            reason = reason or f"not fused as {kind.name}: {fused.reason}"
        if reason is not None:
            self._add(m, name, parameters, LAYER_BY_LAYER, reason)
            return self._swap_children(m, name)
        return self._swap_layer(m, name, parameters) if parameters else self._swap_children(m, name)

    def _fuse(self, m: nn.Module, name: str, kind: BlockKind, weights: Any) -> nn.Module | Refusal:
        """Return the fused form of a block, or why it is not to be used."""
        if reason := self._use_refusal(m, name):
            return Refusal(reason)
        if isinstance(weights, Refusal):
            return weights
        channels = kind.channels(weights)
        calls: Sequence[CallShape] = [CallShape((1, channels, NOMINAL_SIDE, NOMINAL_SIDE), 1)]
        if self._recording is not None:
            calls = self._recording.calls.get(id(m), [])
            if not calls:
                return Refusal(_NEVER_CALLED)
        fused = kind.fuse(weights)
        probe = noise(1, channels, 17, 23)
        # Dark images show what small numbers a norm adds.
        if reason := self._mismatch(m, fused, probe) or self._mismatch(m, fused, probe * 1e-3):
            return Refusal(reason)
        if not self._target.block_pays(m, fused, calls):
            return Refusal("layer by layer is faster")
        for part in kind.parts:
            where = ".".join(filter(None, (name, part.name)))
            module = m.get_submodule(part.name)
            self._add(module, where, prunable_weights(module), part.implementation, part.reason)
        self._names[id(fused)] = name
        return fused

    def _use_refusal(self, m: nn.Module, name: str) -> str | None:
        """Return why a block cannot be one op in this network, whatever it computes."""
        if name in self._reads:
            return f"the network reads its {self._reads[name]}"
        if self._recording is not None and id(m) in self._recording.called_otherwise:
            return _CALLED_OTHERWISE
        hooked = next((n for n, part in m.named_modules() if has_hooks(part)), None)
        if hooked is not None:
            return f"its {hooked} has hooks" if hooked else "it has hooks"
        return None

    def _mismatch(self, dense: nn.Module, sparse: nn.Module, *inputs: Tensor) -> str | None:
        """Return why a sparse form cannot stand for a module, None where both give the same."""
        try:
            expected = dense(*inputs)
        except (RuntimeError, TypeError, ValueError) as error:  # the network's own code may refuse our inputs
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            return f"it cannot be compared on inputs {shapes}: {_line(error)}"
        try:
            result = self._target.run(sparse, *inputs)
        except self._target.launch_errors as error:
            return _line(error)
        same = difference(expected, result) <= self._target.tolerance
        return None if same else "its sparse form does not give the same"

    def _swap_children(self, m: nn.Module, name: str) -> nn.Module:
        before = list(m._modules.items())
        for child_name, child in before:
            if child is not None:
                m._modules[child_name] = self._visit(child, f"{name}.{child_name}" if name else child_name)
        if type(m).forward is nn.Sequential.forward:
            self._absorb_followers(m, name, before)
        return m

    def _absorb_followers(
        self, m: nn.Module, name: str, before: Sequence[tuple[str, nn.Module | None]]
    ) -> None:
        """Move activations and pixel shuffles of an nn.Sequential into the layers before them."""
        last = None  # layer that absorbs what follows
        for child_name, child in before:
            if child is None or not self._runs_with(child, m):
                last = None
            elif last and absorb(m._modules[last], child):
                m._modules[child_name] = nn.Identity()
                self._add_follower(f"{name}.{last}" if name else last, child)
            else:
                last = child_name if isinstance(child, LAYER_TYPES) else None

    def _add_follower(self, name: str, follower: nn.Module) -> None:
        """Name what a layer absorbs in its row of the report."""
        for i, row in enumerate(self._rows):
            if row.name == name:
                implementation = f"{row.implementation} + {type(follower).__name__}"
                self._rows[i] = replace(row, implementation=implementation)

    def _runs_with(self, child: nn.Module, parent: nn.Module) -> bool:
        """Return whether the example shows that a child runs when, and only when, its parent does."""
        if self._recording is None:
            return False
        runs, parents = (
            sum(times for _, times in self._recording.calls.get(id(m), [])) for m in (child, parent)
        )
        return runs > 0 and runs == parents

    def _swap_layer(self, m: nn.Module, name: str, parameters: Sequence[Tensor]) -> nn.Module:
        """Return the sparse form of a module with parameters, or the module with its reason in the report."""
        form = self._form(m, name)
        if isinstance(form, Refusal):
            self._add(m, name, parameters, DENSE, form.reason)
            return m if isinstance(m, LAYER_TYPES) else self._swap_children(m, name)
        weights = prunable_weights(m)
        if self._recording is not None and id(m) not in self._recording.calls:
            self._add(m, name, weights, DENSE, _NEVER_CALLED)
            return m
        if reason := self._mismatch(m, form.module, *probes(m)):
            self._add(m, name, weights, DENSE, reason)
            return m
        sparse = dense = 0.0
        for shape, times in self._shapes(m):
            each = self._target.seconds(m, form, shape)
            sparse, dense = sparse + times * each[0], dense + times * each[1]
        if sparse > dense:
            self._add(m, name, weights, DENSE, "dense is faster", sparse * 1e3, dense * 1e3)
            return m
        self._add(m, name, weights, form.implementation, "sparse is faster", sparse * 1e3, dense * 1e3)
        self._names |= dict.fromkeys(map(id, (form.module, *form.ops)), name)
        return form.module

    def _form(self, m: nn.Module, name: str) -> LayerForm | Refusal:
        """Return the sparse form of a layer, or why it cannot be used in this network."""
        if name in self._reads:
            return Refusal(f"the network reads its {self._reads[name]}")
        if (
            self._recording is not None
            and id(m) in self._recording.called_otherwise
            and not isinstance(m, nn.MultiheadAttention)
        ):
            return Refusal(_CALLED_OTHERWISE)
        return sparse_layer(m, self._target.layers)

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
        self._rows.append(SparsifiedLayer(name, type(m).__name__, *counts, implementation, reason, *times))


def _line(error: Exception) -> str:
    """Return an error's message on one line."""
    return " ".join(str(error).split())[:200]
