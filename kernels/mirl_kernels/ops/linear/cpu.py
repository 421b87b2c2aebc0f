"""Pack a linear layer for the C++ kernel, and call that."""

from __future__ import annotations

import math
from collections import Counter
from ctypes import Structure, c_int64, c_void_p
from itertools import pairwise

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import PackedMatrix, Quantity
from mirl_kernels.errors import BackendError


class LinearArgs(Structure):
    """Hold the argument of the kernel (``MirlLinear`` of abi.h)."""

    _fields_ = [
        ("x", c_void_p),
        ("y", c_void_p),
        ("batch", c_int64),
        ("tokens", c_int64),
        ("x_batch", c_int64),
        ("x_token", c_int64),
        ("x_channel", c_int64),
        ("weight", c_void_p),
        ("activation", cpu.Activation),
        ("threads", c_int64),
    ]


def _are_tokens_evenly_spaced(x: Tensor) -> bool:
    """Return whether all dimensions between the first and the last can be viewed as one."""
    sizes = [(n, s) for n, s in zip(x.shape[1:-1], x.stride()[1:-1], strict=True) if n > 1]
    return all(step == n * inner for (_, step), (n, inner) in pairwise(sizes))


def _tokens(x: Tensor) -> Tensor:
    """Return x as (batch, tokens, channels), where the channels or the tokens lie side by side.

    The planes of an image, permuted, are read as they are.
    """
    if x.ndim > 2 and not x.is_contiguous() and _are_tokens_evenly_spaced(x):
        tokens = x.view(len(x), -1, x.shape[-1])
        if 1 in tokens.stride()[1:]:
            return tokens
    return x.reshape(1, -1, x.shape[-1]).contiguous()


@torch.library.custom_op("mirl::linear", mutates_args=())
def op(x: Tensor, packed: Tensor, inputs: int, outputs: int, activation: str, slope: float) -> Tensor:
    """Return a linear layer of x by a packed matrix.

    Args:
        x: (..., inputs).
        packed: The packed (outputs, inputs) matrix.
        inputs: Channels of a token of x.
        outputs: Channels of a token of the result.
        activation: Name of what happens to the result (`cpu.Activation.of`).
        slope: Slope of the activation.

    Returns:
        (..., outputs).
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim == 0 or x.shape[-1] != inputs:
        raise BackendError(
            f"input is {x.dtype} {tuple(x.shape)} on {x.device}; expected float32 (..., {inputs}) on the CPU"
        )
    PackedMatrix(packed).expect(outputs, inputs)
    out = x.new_empty(*x.shape[:-1], outputs)
    if x.numel():
        tokens = _tokens(x)
        args = LinearArgs(
            tokens.data_ptr(),
            out.data_ptr(),
            *tokens.shape[:2],
            *tokens.stride(),
            cpu.address(packed),
            cpu.Activation.of(activation, slope),
        )
        cpu.Call("linear", args, tokens)()
    return out


@op.register_fake
def _(x: Tensor, packed: Tensor, inputs: int, outputs: int, activation: str, slope: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


class PackedLinear(cpu.PackedModule):
    """Keep the surviving weights of a linear layer.

    Args:
        weight: (O, C).
        bias: (O,) or None.

    Raises:
        ValueError: If it has no inputs or no outputs.
    """

    multiplied = ("packed",)
    packed: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        if not weight.numel():
            raise ValueError(
                f"a linear layer of weights {tuple(weight.shape)}; expected one input and output or more"
            )
        self.register_buffer("packed", cpu.pack(weight.detach(), bias))

    def matrices(self) -> tuple[Tensor]:
        """Return the packed matrices among the buffers."""
        return (self.packed,)

    def quantities(self, *sizes: int) -> Counter[str]:
        r"""Return how often a call on (\*sizes, C) does what has a price in the cost model.

        The keys are members of `Quantity`.
        """
        tokens = math.prod(sizes)
        vectors, groups = cpu.pixel_groups(1, tokens)
        counts = cpu.product_quantities(self.packed, vectors, groups)
        transposed: Counter[str] = Counter({Quantity.TRANSPOSED: (self.inputs + self.outputs) * vectors})
        return counts + transposed + cpu.call_quantities((self.inputs + self.outputs) * tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer of x, (..., C).

        Raises:
            BackendError: If the kernel does not take x.
        """
        return op(x, self.packed, self.inputs, self.outputs, self.activation, self.slope)
