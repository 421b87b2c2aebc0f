"""Make the sparse form of a layer or block, and compare it with the dense one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mirl_sparse.runtime.snapshot import unchanged
from mirl_sparse.sparsification.comparison import difference, probes
from mirl_sparse.sparsification.layers import has_hooks, sparse_layer
from mirl_sparse.sparsification.recording import one_line
from mirl_sparse.sparsification.target import BlockKind, LayerForm, Refusal, SparsificationTarget


def layer_form(m: nn.Module, target: SparsificationTarget) -> LayerForm | Refusal:
    """Return the sparse form of a layer, or why it has none that gives the same.

    Args:
        m: Any module.
        target: The target that the form is for.
    """
    if "_conv_forward" in vars(m):
        return Refusal("it has its own _conv_forward()")
    form = sparse_layer(m, target.layers)
    if isinstance(form, Refusal):
        return form
    reason = _mismatch(target, m, form.module, *probes(m))
    return Refusal(reason) if reason else form


def block_form(m: nn.Module, target: SparsificationTarget, kind: BlockKind) -> nn.Module | Refusal:
    """Return the fused op of a block, or why it has none that gives the same.

    Args:
        m: Any module.
        target: The target that the op is for.
        kind: The kind of block.
    """
    for name, part in m.named_modules():
        if name and {"forward", "_conv_forward"} & vars(part).keys():
            return Refusal(f"its {name} has its own forward()")
        if name and has_hooks(part):
            return Refusal(f"its {name} has hooks")
    weights = kind.recognise(m)
    if weights is None:
        return Refusal(f"it is not {kind.name}")
    if isinstance(weights, Refusal):
        return weights
    fused = kind.fuse(weights)
    probe = kind.arguments(weights, 2, 17, 31)
    # Dark images show what small numbers a norm adds.
    dark = [x * 1e-3 if isinstance(x, Tensor) else x for x in probe]
    reason = _mismatch(target, m, fused, *probe) or _mismatch(target, m, fused, *dark)
    return Refusal(reason) if reason else fused


def _mismatch(target: SparsificationTarget, dense: nn.Module, sparse: nn.Module, *inputs: Any) -> str | None:
    """Return why a sparse form cannot stand for a module, None where both give the same."""
    try:
        with unchanged(dense):
            expected = type(dense).forward(dense, *inputs)  # without the hooks of the module's owner
    except Exception as error:  # the network's own code may refuse our inputs in any way
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
        return f"it cannot be compared on inputs {shapes}: {one_line(error)}"
    try:
        result = target.run(sparse, *inputs)
    except target.launch_errors as error:
        return one_line(error)
    same = difference(expected, result) <= target.tolerance
    return None if same else "its sparse form does not give the same"
