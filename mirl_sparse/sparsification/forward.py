"""Stand in for the forward of a module: its packed op where that gives the same, else the dense forward.

A module with a sparse form stays in its network as it was: its type, weights, hooks and name. Only its
attribute ``forward`` is set. So whatever a network, or a tool around it, asks of its layers has the answer of
the dense network.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mirl_sparse.runtime.execution import wants_gradients
from mirl_sparse.sparsification.layers import absorb, has_hooks, sparse_layer
from mirl_sparse.sparsification.target import BlockKind, Refusal, SparsificationTarget


class _Seen(NamedTuple):
    """Remember a tensor or a module as it was when the op was packed."""

    owner: dict[str, Any]  # of parameters, buffers or modules
    name: str
    value: Any
    version: tuple[int, ...]

    def is_unchanged(self) -> bool:
        value = self.owner.get(self.name)
        return value is self.value and _version(value) == self.version


def _version(value: Any) -> tuple[int, ...]:
    """Return what changes when somebody writes to a tensor."""
    if not isinstance(value, Tensor):
        return ()
    return value.data_ptr(), 0 if value.is_inference() else value._version


def _contents(m: nn.Module) -> list[_Seen]:
    """Return all parameters, buffers and modules inside a module."""
    owners = [x for part in m.modules() for x in (part._parameters, part._buffers, part._modules)]
    return [_Seen(owner, name, v, _version(v)) for owner in owners for name, v in owner.items()]


def _checksum(m: nn.Module) -> int:
    """Return a checksum of a module's weights."""
    checksum = 0
    for t in (*m.parameters(), *m.buffers()):
        checksum = zlib.crc32(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, checksum)
    return checksum


def is_observed(modules: Iterable[nn.Module]) -> bool:
    """Return whether a hook wants to see the call of one of the modules."""
    return bool(nn.modules.module._global_forward_hooks) or any(map(has_hooks, modules))


def _suits(m: nn.Module, x: Tensor) -> bool:
    """Return whether an input has the dimensions that the packed op of a module takes."""
    if isinstance(m, nn.Linear):
        return x.ndim > 0 and x.shape[-1] == m.in_features
    if isinstance(m, nn.MultiheadAttention):
        return x.ndim in (2, 3)
    if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
        return x.ndim in (3, 4) and x.shape[-3] == m.in_channels
    return x.ndim == 4


class _Unscriptable:
    """Say to torch.jit.script that it cannot compile a forward, where it asks for the globals of one."""

    @property
    def __globals__(self) -> dict[str, Any]:
        raise AttributeError(
            "a sparsified network cannot be scripted; give it to torch.jit.trace, or script the dense network"
        )


class SparseForward(_Unscriptable):
    """Run a module by its packed op.

    The dense forward runs instead in training mode, where gradients are wanted, under autocast, on an input
    that the op does not take (another type, device or rank, a batch of 0, further arguments), and where a
    hook waits inside a block. Weights that were written to or replaced are packed again at the next call.

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
        self._inner = tuple(module.modules())[1:]
        self._packs = True
        self.steps: list[Step] = []
        self._seen: list[_Seen] | None  # None in a copy, which looks at its weights at the first call
        self._checksum: int | None = None  # of the weights of the op that a copy holds
        self.settle()
        module.forward = self
        module.register_load_state_dict_post_hook(_pack_loaded)

    def __getstate__(self) -> dict[str, Any]:
        checksum = _checksum(self.module) if self._is_settled() else None
        return vars(self) | {"_seen": None, "_checksum": self._checksum if self._seen is None else checksum}

    def remove(self) -> None:
        """Give the module its dense forward back."""
        del self.module.forward
        hooks = self.module._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if hook is _pack_loaded]:
            del hooks[key]

    def settle(self) -> None:
        """Take the weights as they are now for those of the op."""
        self._seen, self._weights = _contents(self.module), tuple(self.module.parameters())

    def pack(self) -> None:
        """Pack the weights as they are now; where there is no op for them, the dense forward runs."""
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
        if self.module.training or is_observed(self._inner) or not self._takes(args, named):
            return None
        if not torch.compiler.is_compiling() and not self._is_settled():
            if self._seen is None and self._checksum == _checksum(self.module):
                self.settle()
            else:
                self.pack()
        return self.op if self._packs and not wants_gradients(*self._weights) else None

    def _is_settled(self) -> bool:
        return self._seen is not None and all(x.is_unchanged() for x in self._seen)

    def _takes(self, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Return whether the op takes these arguments, and nobody wants gradients of the result."""
        if not isinstance(self.module, nn.MultiheadAttention) and (named or len(args) != 1):
            return False
        inputs = [x for x in (*args, *named.values()) if isinstance(x, Tensor)]
        if not inputs or not _suits(self.module, inputs[0]):
            return False
        return all(self._target.takes(x) for x in inputs if x.is_floating_point()) and not wants_gradients(
            *inputs
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
    if kind is None:
        form = sparse_layer(m, target.layers)
        return form if isinstance(form, Refusal) else form.module
    weights = kind.recognise(m)
    if weights is None or isinstance(weights, Refusal):
        return weights or Refusal(f"it is not {kind.name}")
    return kind.fuse(weights)


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
        self._op = absorbed(op, self.followers)

    def __call__(self, x: Any) -> Any:
        """Return the result of the layer and its followers."""
        forward = vars(self.layer).get("forward")
        if (
            isinstance(forward, SparseForward)
            and not is_observed((self.layer, *self.followers))
            and forward.op_for(x) is not None
            and self._op is not None
        ):
            return self._op(x)
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


class SequentialForward(_Unscriptable):
    """Run an nn.Sequential whose layers do the work of what follows them.

    Args:
        sequential: The module; its attribute ``forward`` is set.
        followers: How many modules each of some layers absorbs, by the layer's place.
    """

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
