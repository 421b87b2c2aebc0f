"""Define what the packed form of an op is: a module whose buffers the C++ kernels read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_double, c_int64
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from mirl_kernels.core.cpu.library import Call
from mirl_kernels.core.cpu.packed_matrix import to_bfloat16
from mirl_kernels.core.cpu.quantities import call_quantities
from mirl_kernels.errors import BackendError

_Module = TypeVar("_Module", bound="PackedModule")


class Activation(Structure):
    """Say what happens to a result before it is stored; `Activation.of` makes one.

    Attributes:
        gelu: Not 0 for the exact GELU.
        slope: Else the result is max(x, slope * x), 0 <= slope <= 1; 1 leaves x as it is.
    """

    _fields_ = [("gelu", c_int64), ("slope", c_double)]

    @classmethod
    def of(cls, name: str, slope: float = 0.0) -> Activation:
        """Return an activation by its name.

        Args:
            name: "none", "relu", "leaky_relu" or "gelu" (exact).
            slope: The factor, 0 to 1, of what is negative; for "leaky_relu" alone.

        Raises:
            BackendError: If the slope is out of range.
        """
        if name == "leaky_relu" and not 0 <= slope <= 1:
            raise BackendError(f"slope is {slope}; expected 0 to 1")
        return cls(name == "gelu", {"none": 1.0, "gelu": 1.0, "relu": 0.0, "leaky_relu": slope}[name])


class Work(NamedTuple):
    """Hold what a call of an op must do at least.

    Attributes:
        macs: Multiply-adds by surviving weights.
        bytes: Bytes read and written: the images once each way, and the weights.
    """

    macs: int
    bytes: int


class PackedModule(nn.Module, ABC):
    """Keep the surviving weights of one op as a module; its buffers are what its kernel reads.

    Attributes:
        activation: Name of the activation of what the op stores, for ops that have one (`Activation.of`).
        slope: Slope of the activation.
        multiplied: Names of the buffers that are packed matrices which are multiplied with pixels.
    """

    activation = "none"
    slope = 0.0
    multiplied: tuple[str, ...] = ()

    @classmethod
    def from_weights(cls: type[_Module], *weights: Any, **options: Any) -> _Module:
        """Return the module for what the op's definition takes after x."""
        return cls(*weights, **options)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = False) -> None:
        """Keep a buffer; it is no state, for no kernel checks what a file would put into it."""
        super().register_buffer(name, tensor, persistent)

    def to_bfloat16(self) -> None:
        """Round weights to bfloat16, in place, where products of bfloat16 numbers are faster."""
        for name in self.multiplied:
            setattr(self, name, to_bfloat16(getattr(self, name)))
        for part in self.children():
            if isinstance(part, PackedModule):
                part.to_bfloat16()

    @abstractmethod
    def matrices(self) -> Sequence[Tensor]:
        """Return the packed matrices among the buffers."""

    def _fits(self) -> bool:
        """Return whether the buffers belong to each other, where several were packed; no kernel checks it."""
        return True

    def _expect_fit(self, **weights: Tensor) -> None:
        """Raise a ValueError unless the buffers, just packed from these weights, fit."""
        if not self._fits():
            shapes = ", ".join(f"{name} {tuple(w.shape)}" for name, w in weights.items())
            raise ValueError(f"weights do not belong together, or to a {type(self).__name__}: {shapes}")


class Packed(PackedModule):
    """Keep the surviving weights of an op from image to image."""

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        """Return how many floats of scratch memory a call on (batch, C, height, width) takes."""
        return 0

    @abstractmethod
    def work(self, batch: int, height: int, width: int) -> Work:
        """Return what a call on (batch, C, height, width) must do."""

    def quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return how often a call on (batch, C, height, width) does what has a price in the cost model.

        The keys are members of `Quantity`.
        """
        floats = self.work(batch, height, width).bytes // 4
        return self.kernel_quantities(batch, height, width) + call_quantities(floats)

    @abstractmethod
    def kernel_quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        """Return the `quantities` without those that any call has."""

    @abstractmethod
    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> Call:
        """Return the call that computes ``out`` = op(x).

        Args:
            x: (B, C, H, W) float32 on the CPU, with contiguous rows.
            out: The result, of the same kind.
            scratch: At least `scratch_floats` floats; None where an op takes none.

        Raises:
            BackendError: If the kernel does not take these tensors.
        """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return op(x), by an op of torch.library, so that it can be compiled and exported.

        Raises:
            BackendError: As `bind`.
        """
