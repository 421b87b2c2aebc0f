"""Swap the layers of a pruned network for sparse ones: `sparsify`.

Blocks of Restormer's family, of NAFNet and prompts are fused whole, on a CPU wherever they occur (with 20% of
a wide block's weights that is as fast as dense, with more it is slower). Convolutions, linear layers and
attention projections are swapped one by one, where the cost model finds that it pays. Every swapped module is
compared with the dense one.
"""

from __future__ import annotations

import copy
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.errors import UserError
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.sparsification.cpu import CpuTarget
from mirl_sparse.sparsification.layers import has_hooks
from mirl_sparse.sparsification.passes import Sparsification, disable_fast_paths, record_calls
from mirl_sparse.sparsification.report import SparsifiedLayer, SparsityReport
from mirl_sparse.sparsification.target import SparsificationTarget
from mirl_sparse.tickets import describe, remove_pruning


def sparsify(
    module: nn.Module,
    example_input: Tensor | tuple[Any, ...] | None = None,
    backend: str = "cpu",
    precision: str | None = None,
) -> nn.Module:
    """Return a copy of a pruned network, in eval mode, that does not compute its zeros.

    The example input is run through the network once. It shows how large the images are that each layer sees,
    which decides what pays. Without it, layers are chosen for images of 64x64. A `PromptIR` becomes a
    `SparseRestorer` and needs no example.

    On the CPU the result runs in float32, for inference only. It can be copied, pickled, saved by its
    state_dict and loaded into another sparsified copy of the network, compiled by torch.compile and exported.
    The fast path of torch.nn.TransformerEncoder, which makes padded positions zero, is turned off.

    On a GPU the result takes inputs of ``precision`` there. Convolutions but depthwise ones, linear layers
    and Restormer's blocks are swapped where they are measured to be faster than PyTorch's dense operators.
    The result is not compiled or exported, and a PromptIR's restorer takes float32.

    Args:
        module: The network. Masks of torch.nn.utils.prune are applied in the copy.
        example_input: A tensor, or a tuple of arguments.
        backend: "cpu", or "triton" for a GPU.
        precision: "float16" (the default on a GPU), "bfloat16" or "float32" (the only one on the CPU).

    Returns:
        The network. Its ``report`` (`SparsityReport`) says what became of every layer, and why.

    Raises:
        UserError: An argument is wrong, or the results for the example input differ from the dense network's
            by more than 1e-4 of the largest value, or of 1 where that is less. On a GPU the limits are 2e-2
            for float16, 1e-1 for bfloat16 and 2e-3 for float32.
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
    _check(module)
    return sparsify_for(_target(backend, precision), module, example_input)


@torch.no_grad()
def sparsify_for(
    target: SparsificationTarget, module: nn.Module, example_input: Tensor | tuple[Any, ...] | None = None
) -> nn.Module:
    """Return what `sparsify` returns, for a target.

    Args:
        target: The target that the network is to run on, such as ``CpuTarget(prices)``.
        module: The network.
        example_input: A tensor, or a tuple of arguments.

    Raises:
        UserError: As `sparsify`.
    """
    _check(module)
    network = _prepared(module, target)
    if _is_promptir(network):
        return _restorer(network, target)
    if example_input is None:
        disable_fast_paths(network)
        return Sparsification(target, None, {}).run(network)
    example = example_input if isinstance(example_input, tuple) else (example_input,)
    example = tree_map(target.prepare, example)
    reads: dict[str, str] = {}
    while True:
        disable_fast_paths(network)
        sparsification = Sparsification(target, record_calls(network, example), reads)
        sparsified = sparsification.run(network)
        read = sparsification.read_attribute(sparsified, example)
        if read is None:
            return sparsified
        reads |= [read]
        network = _prepared(module, target)


def _check(module: object) -> None:
    if not isinstance(module, nn.Module):
        raise UserError(f"module is {type(module).__name__}; expected a torch.nn.Module")


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
    # Weights that a pruning hook computed are no leaves, which deepcopy refuses.
    computed = {
        id(value): value.detach().clone()
        for m in module.modules()
        for value in vars(m).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    copied = copy.deepcopy(module, computed)
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
