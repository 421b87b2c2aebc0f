"""Linear layer, of tokens."""

from __future__ import annotations

import contextlib
from collections import Counter
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.linear.reference import linear as reference

__all__ = ["PackedLinear", "reference"]


class _Args(Structure):
    _fields_ = [("x", c_void_p), ("y", c_void_p), ("batch", c_int64), ("tokens", c_int64), ("x_batch", c_int64),
                ("x_token", c_int64), ("x_channel", c_int64), ("weight", c_void_p), ("activation", cpu.Activation),
                ("threads", c_int64)]  # fmt: skip


def _tokens(x: Tensor) -> Tensor:
    """x as (batch, tokens, channels), of which the channels or the tokens lie side by side: the planes of an image,
    permuted, are read as they are."""
    if x.ndim > 2 and not x.is_contiguous():
        with contextlib.suppress(RuntimeError):  # no view of it
            tokens = x.view(len(x), -1, x.shape[-1])
            if 1 in tokens.stride()[1:]:
                return tokens
    return x.reshape(1, -1, x.shape[-1]).contiguous()


@torch.library.custom_op("mirl::linear", mutates_args=())
def op(x: Tensor, packed: Tensor, inputs: int, outputs: int, activation: str, slope: float) -> Tensor:
    """A linear layer: x (..., inputs) to (..., outputs)."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.ndim == 0 or x.shape[-1] != inputs:
        raise BackendError(
            f"input is {x.dtype} {tuple(x.shape)} on {x.device}; expected float32 (..., {inputs}) on the CPU"
        )
    cpu.expect(packed, outputs, inputs)
    out = x.new_empty(*x.shape[:-1], outputs)
    if x.numel():
        tokens = _tokens(x)
        args = _Args(tokens.data_ptr(), out.data_ptr(), *tokens.shape[:2], *tokens.stride(), cpu.address(packed),
                     cpu.activation(activation, slope))  # fmt: skip
        cpu.Call("linear", args, tokens)()
    return out


@op.register_fake
def _(x: Tensor, packed: Tensor, inputs: int, outputs: int, activation: str, slope: float) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


class PackedLinear(cpu.PackedModule):
    """The surviving weights of a linear layer; arguments as in `reference`. ValueError where it has no inputs or no outputs."""

    packed: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.outputs, self.inputs = weight.shape
        if not weight.numel():
            raise ValueError(
                f"a linear layer of weights {tuple(weight.shape)}; expected one input and output or more"
            )
        self.register_buffer("packed", cpu.pack(weight.detach(), bias))

    def _fits(self) -> bool:
        return cpu.header(self.packed) == (self.outputs, self.inputs)

    def quantities(self, tokens: int) -> Counter[str]:
        """As those of `cpu.Packed`, for a call on (tokens, C)."""
        vectors, groups = cpu.groups(1, tokens)
        found = cpu.product_quantities(self.packed, vectors, groups)
        turned = Counter({"turn": (self.inputs + self.outputs) * vectors})
        return found + turned + cpu.call_quantities((self.inputs + self.outputs) * tokens)

    def forward(self, x: Tensor) -> Tensor:
        return op(x, self.packed, self.inputs, self.outputs, self.activation, self.slope)
