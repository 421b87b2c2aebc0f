"""Swap the layers of a pruned network for sparse ones: `sparsify`.

Blocks of Restormer's family, of NAFNet, SwinIR, SCUNet and Uformer, and prompts are fused whole, on a CPU
wherever they occur (with 20% of a wide block's weights that is as fast as dense, with more it is slower).
Convolutions, linear layers and attention projections are swapped one by one, where the cost model finds that
it pays. Every swapped module is compared with the dense one.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.sparsification.cpu import CpuTarget
from mirl_sparse.sparsification.fast_paths import without_fast_paths
from mirl_sparse.sparsification.forward import remove_sparse_forms
from mirl_sparse.sparsification.layers import has_hooks
from mirl_sparse.sparsification.passes import Sparsification
from mirl_sparse.sparsification.recording import Example, one_line, record_calls
from mirl_sparse.sparsification.report import SparsifiedLayer, SparsityReport
from mirl_sparse.sparsification.target import SparsificationTarget
from mirl_sparse.sparsification.verification import Verification
from mirl_sparse.tickets import describe, remove_pruning

ExampleInput = Tensor | tuple[Any, ...] | Mapping[str, Any] | None


def sparsify(
    module: nn.Module,
    example_input: ExampleInput = None,
    backend: str = "cpu",
    precision: str | None = None,
    keep_dense: Collection[str] = (),
    tolerance: float | None = None,
) -> nn.Module:
    """Return a copy of a pruned network, in eval mode, that does not compute its zeros.

    The example input is run through the network. It shows how large the images are that each layer sees,
    which decides what pays. Without it, layers are chosen for images of 64x64. A `PromptIR` becomes a
    `SparseRestorer` and needs no example.

    The copy is used like the network: its modules keep their types, names, weights, hooks and state_dict. A
    swapped module runs densely where only that is right: in training mode, for gradients, under autocast,
    torch.func and torch.jit.trace, in another precision, for a batch of 0. The copy can be copied, pickled,
    compiled by torch.compile and exported.

    Weights and modules that change are packed anew at the next call. Two limits: single weights written
    through ``.data`` or numpy may be missed (call sparsify again); and torch.compile and torch.export take
    the weights of the last call or load_state_dict (compile again after a change). Pruned weights are
    skipped: a NaN or an infinity in the input spreads to fewer pixels than by the dense layer.

    On the CPU the sparse kernels run in float32. The fast path of torch.nn.TransformerEncoder, which makes
    padded positions zero, is turned off where a layer inside is swapped.

    On a GPU the result takes inputs of ``precision`` there. Convolutions but depthwise ones, linear layers
    and Restormer's blocks are swapped where they are measured to be faster than PyTorch's dense operators.
    The result is not compiled or exported, and a PromptIR's restorer takes float32.

    Args:
        module: The network. Masks of torch.nn.utils.prune are applied in the copy. Of a network that
            torch.compile returned, the network inside is taken; compile the result again.
        example_input: A tensor, a tuple of arguments, or a dict of arguments by name.
        backend: "cpu", or "triton" for a GPU.
        precision: "float16" (the default on a GPU), "bfloat16" or "float32" (the only one on the CPU).
        keep_dense: Names of modules, as ``named_modules`` gives them, that stay dense with all inside.
        tolerance: Largest difference of the results for the example input from the dense network's, relative
            to the largest value, or to 1 where that is less. The default is 1e-4 on the CPU; on a GPU it is
            2e-2 for float16, 1e-1 for bfloat16 and 2e-3 for float32.

    Returns:
        The network. Its ``report`` (`SparsityReport`) says what became of every layer, and why. Where results
        cannot be compared, since the network gives another one at each call or no tensors, each swapped
        module is compared on what it gets from the example input.

    Raises:
        UserError: An argument is wrong, the network has no weights yet or does not take the example input, or
            the results differ by more than the tolerance.
        BackendError: There is no GPU or no Triton for "triton", or the C++ kernels were not built.

    Examples:
        >>> from torch.nn.utils import prune
        >>> from mirl_sparse import sparsify
        >>> from mirl_sparse.architectures.promptir.network import TransformerBlock
        >>> block = TransformerBlock(12, heads=2, expansion=2)
        >>> network = nn.Sequential(nn.PixelUnshuffle(2), block, nn.PixelShuffle(2))
        >>> for layer in network.modules():
        ...     if isinstance(layer, nn.Conv2d):
        ...         _ = prune.l1_unstructured(layer, "weight", amount=0.8)
        >>> sparse = sparsify(network, torch.rand(1, 3, 32, 32))
        >>> [layer.implementation for layer in sparse.report.layers]
        ['fused MDTA', 'fused GDFN']
        >>> sparse(torch.rand(1, 3, 64, 48)).shape
        torch.Size([1, 3, 64, 48])
    """
    network = _checked(module)
    target = _target(backend, precision)
    return sparsify_for(target, network, example_input, keep_dense, tolerance)


@torch.no_grad()
def sparsify_for(
    target: SparsificationTarget,
    module: nn.Module,
    example_input: ExampleInput = None,
    keep_dense: Collection[str] = (),
    tolerance: float | None = None,
) -> nn.Module:
    """Return what `sparsify` returns, for a target.

    Args:
        target: The target that the network is to run on, such as ``CpuTarget(prices)``.
        module: The network.
        example_input: A tensor, a tuple of arguments, or a dict of arguments by name.
        keep_dense: Names of modules that stay dense.
        tolerance: Largest difference of the results; None for the target's.

    Raises:
        UserError: As `sparsify`.
    """
    module = _checked(module)
    _check_names(module, keep_dense)
    network = _prepared(module, target)
    if _is_promptir(network) and not keep_dense:
        return _restorer(network, target)
    with without_fast_paths(network):
        if example_input is None:
            sparsification = Sparsification(target, None, keep_dense)
            sparsified = sparsification.run(network)
            sparsified.report = SparsityReport(tuple(sparsification.rows))  # type: ignore[assignment]
            return sparsified
        example = _example(network, example_input, target)
        recording = record_calls(network, example)
        sparsification = Sparsification(target, recording, keep_dense)
        sparsified = sparsification.run(network)
        limit = target.tolerance if tolerance is None else tolerance
        verification = Verification(target, sparsified, example, recording, limit)
        comparison = verification.run(sparsification.forwards, sparsification.revert)
        report = SparsityReport(tuple(sparsification.rows), comparison)
        sparsified.report = report  # type: ignore[assignment]
        return sparsified


def _checked(module: object) -> nn.Module:
    """Return the network that is meant, whose weights can be read."""
    if not isinstance(module, nn.Module):
        raise UserError(f"module is {type(module).__name__}; expected a torch.nn.Module")
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            "module is TorchScript, whose layers cannot be swapped; give the network that it was made from"
        )
    compiled = getattr(module, "_orig_mod", None)  # of torch.compile
    network = compiled if isinstance(compiled, nn.Module) else module
    if not isinstance(getattr(network, "report", None), (SparsityReport, type(None))):
        raise UserError(
            f"{type(network).__name__} has a report of its own, where sparsify puts its report; rename it"
        )
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(value):
            raise UserError(f"{name} has no shape yet; run the network once, or load its weights, before")
        if value.is_meta:
            raise UserError(f"{name} is on the meta device, without values; load the weights before")
    return network


def _check_names(network: nn.Module, keep_dense: Collection[str]) -> None:
    if isinstance(keep_dense, str):
        raise UserError(f'keep_dense is "{keep_dense}"; expected a list of names')
    names = dict(network.named_modules())
    for name in keep_dense:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise UserError(
                f'keep_dense names "{name}", which the network does not have'
                + (f'; did you mean "{near[0]}"?' if near else "; expected a name of named_modules()")
            )


def _example(network: nn.Module, example_input: ExampleInput, target: SparsificationTarget) -> Example:
    """Return the example input as arguments."""
    if isinstance(example_input, tuple):
        example = Example(example_input, {})
    elif isinstance(example_input, Mapping) and _takes_names(network, example_input):
        example = Example((), dict(example_input))
    else:
        example = Example((example_input,), {})
    return Example(*tree_map(target.prepare, tuple(example)))


def _takes_names(network: nn.Module, named: Mapping[str, Any]) -> bool:
    """Return whether a network takes arguments of these names, rather than a dict."""
    try:
        inspect.signature(network.forward).bind(**named)
    except TypeError:
        return False
    return True


def _target(backend: str, precision: str | None) -> SparsificationTarget:
    """Return the target of a backend's name."""
    if backend not in ("cpu", "triton"):
        raise UserError(f'backend is "{backend}"; expected "cpu" or "triton"')
    if backend == "triton":
        from mirl_sparse.sparsification.triton import TritonTarget

        return TritonTarget(precision or "float16")
    if precision not in (None, "float32"):
        raise UserError(f'precision is "{precision}" on backend "cpu"; expected "float32"')
    return CpuTarget()


def _prepared(module: nn.Module, target: SparsificationTarget) -> nn.Module:
    """Return a deep copy for inference on a target, in which masks of torch.nn.utils.prune are applied."""
    # deepcopy refuses weights that a pruning hook computed, which are no leaves, and sparse ones.
    computed = {
        id(value): value.detach().clone()
        for m in module.modules()
        for value in vars(m).values()
        if isinstance(value, Tensor) and not value.is_leaf
    } | {
        id(p): nn.Parameter(p.detach().clone(), False)
        for p in module.parameters()
        if p.layout != torch.strided
    }
    try:
        copied = copy.deepcopy(module, computed)
    except Exception as error:  # of any object that the network holds
        raise UserError(
            f"the network cannot be copied ({type(error).__name__}: {one_line(error)})"
        ) from error
    if copied is module:
        raise UserError(f"copy.deepcopy of {type(module).__name__} gives no copy; expected one")
    remove_sparse_forms(copied)
    remove_pruning(copied)
    network: nn.Module = target.prepare(copied.eval().requires_grad_(False))
    return network


def _is_promptir(network: nn.Module) -> TypeGuard[PromptIR]:
    """Return whether a network is a whole PromptIR that does nothing else."""
    return (
        isinstance(network, PromptIR)
        and type(network).forward is PromptIR.forward
        and not any(map(has_hooks, network.modules()))
    )


def _restorer(network: PromptIR, target: SparsificationTarget) -> SparseRestorer:
    """Return the restorer of a whole PromptIR, with its report."""
    restorer = SparseRestorer(network.to(target.device), target.backend, precision=target.precision)
    rows = (
        SparsifiedLayer(x.name, "PromptIR", x.nonzero, x.total, "SparseRestorer", x.implementation)
        for x in describe(network).layers
    )
    restorer.report = SparsityReport(tuple(rows))  # type: ignore[assignment]
    return restorer
