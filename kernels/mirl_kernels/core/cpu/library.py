"""Load the C++ kernels and call them.

The kernels are one shared library with a plain C interface, ``src/abi.h``. The structures that its functions
take are ``ctypes.Structure`` classes here and beside the ops. Each has the name of its C++ structure without
``Mirl``; those that a kernel takes as its argument end in ``Args`` (``GdfnArgs`` is ``MirlGdfn``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import Structure, c_int64, c_void_p
from enum import Enum
from functools import cache

import torch
from torch import Tensor

from mirl_kernels.core.native import load_library
from mirl_kernels.errors import BackendError

LANES = {"avx512": 16, "avx2": 8, "portable": 4}  # floats of a vector, by instruction set


class Image(Structure):
    """Describe an image to the kernels.

    Attributes:
        data: Address of its first float; 0 for no image.
        batch: Floats from one item to the next.
        channel: Floats from one channel to the next.
        row: Floats from one row to the next.
    """

    _fields_ = [("data", c_void_p), ("batch", c_int64), ("channel", c_int64), ("row", c_int64)]


class Size(Structure):
    """Hold the size of an image.

    Attributes:
        batch: Number of items.
        channels: Channels of an item.
        height: Rows of a channel.
        width: Pixels of a row.
        flat: Not 0 if rows are short and follow each other in memory, in all images of this size.
    """

    _fields_ = [
        ("batch", c_int64),
        ("channels", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("flat", c_int64),
    ]


def isa() -> str:
    """Return the instruction set in use: avx512, avx2 or portable.

    Raises:
        BackendError: As `load_library`.
    """
    return load_library().mirl_isa().decode()


def _other_version(name: str) -> BackendError:
    """Return the error for a library that was built from other sources."""
    return BackendError(f"the C++ kernels are of another version (mirl_{name}); install mirl-sparse again")


@cache
def _function(name: str, size: int) -> Callable[[object], int]:
    """Return a kernel that takes an argument of ``size`` bytes."""
    if getattr(load_library(), f"mirl_{name}_bytes")() != size:
        raise _other_version(name)
    return getattr(load_library(), f"mirl_{name}")


@cache
def _rule(name: str) -> Callable[..., int]:
    """Return a function of the library from integers to an integer."""
    library = load_library()
    if not hasattr(library, f"mirl_{name}"):
        raise _other_version(name)
    function = getattr(library, f"mirl_{name}")
    function.restype = c_int64
    return function


def kernel_rule(name: str, *arguments: int) -> int:
    """Return what a rule of the kernels says (``src/shared_rules.h``), so that it is written once.

    Args:
        name: The rule's name.
        *arguments: What it takes.

    Raises:
        BackendError: As `load_library`, or if the library is of another version and lacks the rule.
    """
    return _rule(name)(*map(c_int64, arguments))


class Bfloat16Unit(Enum):
    """Tell how bfloat16 numbers are multiplied here (``Bfloat16Unit`` of bfloat16_unit.h).

    Attributes:
        NONE: In float32, which is slow.
        VECTOR: By AVX512_BF16.
        TILES: By AMX.
    """

    NONE = "emulated, slow"
    VECTOR = "by AVX512_BF16"
    TILES = "by AMX"


def bfloat16_unit() -> Bfloat16Unit:
    """Return how bfloat16 numbers are multiplied here.

    Raises:
        BackendError: As `load_library`.
    """
    return list(Bfloat16Unit)[kernel_rule("bfloat16_unit")]


class Call:
    """Bind a kernel to its argument; call the result to run the kernel on PyTorch's threads.

    Args:
        name: The kernel's name in the list ``MIRL_OPS`` of abi.h.
        args: Its argument. The last field is called ``threads`` and is set by each call.
        tensors: Tensors whose memory the argument names. They live as long as the call.

    Raises:
        BackendError: If the library was built from another version of the structure.
    """

    def __init__(self, name: str, args: Structure, *tensors: Tensor | None) -> None:
        self._function = _function(name, ctypes.sizeof(args))
        self._name, self._args, self._tensors = name, args, tensors

    def __call__(self) -> None:
        """Run the kernel.

        Raises:
            MemoryError: If the kernel cannot allocate its scratch memory.
        """
        self._args.threads = torch.get_num_threads()
        if self._function(ctypes.byref(self._args)):
            raise MemoryError(f"mirl_{self._name} ran out of memory")
