"""Stand in for the forward of a module: its packed op where that gives the same, else the dense forward.

A module with a sparse form stays in its network as it was: its type, weights, hooks and name. Only its
attribute ``forward`` is set. So whatever a network, or a tool around it, asks of its layers has the answer of
the dense network.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from mirl_sparse.runtime.execution import wants_gradients
from mirl_sparse.runtime.snapshot import Snapshot, checksum
from mirl_sparse.sparsification.forms import block_form, layer_form
from mirl_sparse.sparsification.layers import absorb, has_hooks
from mirl_sparse.sparsification.target import BlockKind, Refusal, SparsificationTarget


def is_observed(modules: Iterable[nn.Module]) -> bool:
    """Return whether a hook wants to see the call of one of the modules."""
    everywhere = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    return bool(everywhere) or any(map(has_hooks, modules))


def _is_transformed() -> bool:
    """Return whether torch.func or torch.jit.trace runs the network."""
    return torch.jit.is_tracing() or torch._C._functorch.peek_interpreter_stack() is not None


def _suits(m: nn.Module, kind: BlockKind | None, x: Tensor) -> bool:
    """Return whether an input has the dimensions that the packed op of a module takes."""
    if kind is not None:
        return x.ndim == kind.dimensions
    if isinstance(m, nn.Linear):
        return x.ndim > 0 and x.shape[-1] == m.in_features
    if isinstance(m, nn.MultiheadAttention):
        return x.ndim in (2, 3)
    return x.ndim in (3, 4) and x.shape[-3] == m.in_channels


class _Forward:
    """Be the attribute ``forward`` of a module, with the signature of its dense one."""

    module: nn.Module

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(MethodType(type(self.module).forward, self.module))

    @property
    def __code__(self) -> CodeType:
        return type(self.module).forward.__code__

    @property
    def __globals__(self) -> dict[str, Any]:
        raise AttributeError("a sparsified network cannot be scripted; script the dense network")


class SparseForward(_Forward):
    """Run a module by its packed op.

    The dense forward runs instead in training mode, where gradients are wanted, under autocast, torch.func
    and torch.jit.trace, on an input that the op does not take (another type, device or rank, a batch of 0,
    further arguments), and where a hook waits inside a block. A module that was changed is packed again at
    the next call.

    Args:
        module: The module; its attribute ``forward`` is set.
        target: The target that the op runs on.
        kind: How the module is fused, None for a layer.
        op: The packed op, placed on the target.

    Attributes:
        steps: The steps of nn.Sequentials that run the op together with what follows it.
    """

    def __init__(
        self, module: nn.Module, target: SparsificationTarget, kind: BlockKind | None, op: nn.Module
    ) -> None:
        self.module, self.op = module, op
        self._target, self._kind = target, kind
        self._packs = True
        self.steps: list[Step] = []
        self._checksum: int | None = None  # of the weights of the op, where the snapshot may miss a change
        module.forward = self
        module.register_load_state_dict_post_hook(_pack_loaded)
        self.settle()

    def __getstate__(self) -> dict[str, Any]:
        self._doubt()
        return vars(self) | {"_snapshot": Snapshot()}

    def remove(self) -> None:
        """Give the module its dense forward back."""
        del self.module.forward
        hooks = self.module._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if hook is _pack_loaded]:
            del hooks[key]

    def settle(self) -> None:
        """Take the module as it is now for what the op computes."""
        self._snapshot, self._checksum = Snapshot(self.module), None
        self._inner = tuple(self.module.modules())[1:]

    def pack(self) -> None:
        """Pack the weights as they are now; where there is no op for them, the dense forward runs."""
        self._snapshot, self._checksum = Snapshot(), None  # also after an error
        packed = packed_form(self._target.packable(self.module), self._target, self._kind)
        self._packs = not isinstance(packed, Refusal)
        if not isinstance(packed, Refusal):
            self.op = self._target.place(packed)
        for step in self.steps:
            step.absorb(self.op)
        self.settle()

    def dense(self, *args: Any, **named: Any) -> Any:
        """Run the module as it was."""
        return type(self.module).forward(self.module, *args, **named)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Return the module's result."""
        op = self.op_for(*args, **named)
        return self.dense(*args, **named) if op is None else op(*args, **named)

    def op_for(self, *args: Any, **named: Any) -> nn.Module | None:
        """Return the op that gives the module's result for these arguments, None where none does."""
        if torch.compiler.is_compiling():
            if torch.compiler.is_dynamo_compiling():
                self._catch_up()
            weights = self._snapshot.tensors
            frozen = not any(
                t.requires_grad for t in weights
            )  # else a trained network would have old weights
            return self.op if frozen and self._packs and self._is_inference(args, named, weights) else None
        if _is_transformed():
            return None
        current = self._snapshot.is_current()
        weights = self._snapshot.tensors if current else [*self.module.parameters(), *self.module.buffers()]
        if not self._is_inference(args, named, weights):
            self._doubt()  # a fused optimizer may follow, which the snapshot may miss
            return None
        if not current:
            self._catch_up()
        return self.op if self._packs else None

    @torch.compiler.assume_constant_result
    def _catch_up(self) -> None:
        """Pack the weights as they are now, unless the op has them; torch.compile runs it at once."""
        if self._snapshot.is_current():
            return
        if self._checksum is not None and self._checksum == checksum(self.module):
            self.settle()
        else:
            self.pack()

    def _doubt(self) -> None:
        """Compare the weights with those of the op, by a checksum, before the op is used again."""
        if self._snapshot.is_current():
            self._snapshot, self._checksum = Snapshot(), checksum(self.module)

    def _is_inference(
        self, args: tuple[Any, ...], named: dict[str, Any], weights: Collection[Tensor]
    ) -> bool:
        """Return whether the op takes these arguments, and nobody wants more than the module's result."""
        if self.module.training or any(m.training for m in self._inner) or is_observed(self._inner):
            return False
        inputs = [x for x in (*args, *named.values()) if isinstance(x, Tensor)]
        if not isinstance(self.module, nn.MultiheadAttention):
            positional = (1,) if self._kind is None else self._kind.positional
            if named or len(args) not in positional or len(inputs) > 1:
                return False
        if not inputs or not _suits(self.module, self._kind, inputs[0]):
            return False
        return all(self._target.takes(x) for x in inputs if x.is_floating_point()) and not wants_gradients(
            *inputs, *weights
        )


def _pack_loaded(module: nn.Module, incompatible_keys: Any) -> None:
    """Pack the weights that load_state_dict has put into a module."""
    forward = vars(module).get("forward")
    if isinstance(forward, SparseForward):
        forward.pack()


def packed_form(m: nn.Module, target: SparsificationTarget, kind: BlockKind | None) -> nn.Module | Refusal:
    """Pack a layer, or fuse a block.

    Args:
        m: The module.
        target: The target that the op is for.
        kind: How the module is fused, None for a layer.

    Returns:
        The op, or why there is none.
    """
    if kind is not None:
        return block_form(m, target, kind)
    form = layer_form(m, target)
    return form if isinstance(form, Refusal) else form.module


class Step:
    """Run a layer of an nn.Sequential and what follows it in one op.

    Args:
        layer: The layer, whose forward is sparse.
        followers: The modules behind it that its op can do the work of.
    """

    def __init__(self, layer: nn.Module, followers: tuple[nn.Module, ...]) -> None:
        self.layer, self.followers = layer, followers
        forward = vars(layer)["forward"]
        self.absorb(forward.op)
        forward.steps.append(self)

    def absorb(self, op: nn.Module) -> None:
        """Take another op of the layer.

        Args:
            op: The op without its followers.
        """
        self._op, self._snapshot = absorbed(op, self.followers), Snapshot(*self.followers)

    def _op_now(self, forward: SparseForward) -> nn.Module | None:
        """Return the op for the followers as they are now, None where it cannot do the work of all."""
        if not torch.compiler.is_compiling() and not self._snapshot.is_current():
            self.absorb(forward.op)
        return self._op

    def __call__(self, x: Any) -> Any:
        """Return the result of the layer and its followers."""
        forward = vars(self.layer).get("forward")
        if (
            isinstance(forward, SparseForward)
            and not is_observed((self.layer, *self.followers))
            and forward.op_for(x) is not None
            and (op := self._op_now(forward)) is not None
        ):
            return op(x)
        x = self.layer(x)
        for follower in self.followers:
            x = follower(x)
        return x


def absorbed(op: nn.Module, followers: Iterable[nn.Module]) -> nn.Module | None:
    """Return an op that also does the work of the modules behind it, with the same packed weights.

    Args:
        op: The packed op, or a padding and the op.
        followers: The modules that are called on its result, in order.

    Returns:
        The op, None where it cannot do the work of all.
    """
    op = copy.copy(op)
    if isinstance(op, nn.Sequential):
        op = nn.Sequential(*(copy.copy(part) for part in op))
    return op if all(absorb(op, follower) for follower in followers) else None


class SequentialForward(_Forward):
    """Run an nn.Sequential whose layers do the work of what follows them.

    Args:
        sequential: The module; its attribute ``forward`` is set.
        followers: How many modules each of some layers absorbs, by the layer's place.
    """

    module: nn.Sequential

    def __init__(self, sequential: nn.Sequential, followers: dict[int, int]) -> None:
        self.module, self._children = sequential, tuple(sequential)
        self._steps: list[Any] = []
        i = 0
        while i < len(self._children):
            end = i + 1 + followers.get(i, 0)
            child, behind = self._children[i], self._children[i + 1 : end]
            self._steps.append(Step(child, behind) if behind else child)
            i = end
        sequential.forward = self  # type: ignore[method-assign]

    def remove(self) -> None:
        """Give the module its own forward back."""
        del self.module.forward

    def __call__(self, input: Any) -> Any:
        """Return the module's result."""
        children = self.module._modules.values()
        if len(children) != len(self._children) or any(
            a is not b for a, b in zip(children, self._children, strict=True)
        ):
            return nn.Sequential.forward(self.module, input)
        for step in self._steps:
            input = step(input)
        return input


def forwards(network: nn.Module) -> Iterator[SparseForward | SequentialForward]:
    """Yield the forwards of a network that were set here."""
    for m in network.modules():
        forward = vars(m).get("forward")
        if isinstance(forward, (SparseForward, SequentialForward)):
            yield forward


def remove_sparse_forms(network: nn.Module) -> None:
    """Give all modules of a network their dense forwards back."""
    for forward in list(forwards(network)):
        forward.remove()


@contextmanager
def dense_forwards(network: nn.Module) -> Iterator[None]:
    """Run all modules of a network by their dense forwards meanwhile."""
    current = list(forwards(network))
    for forward in current:
        del forward.module.forward
    try:
        yield
    finally:
        for forward in current:
            forward.module.forward = forward
