"""List the values of options that commands and the Python API share; help shows them without PyTorch."""

from __future__ import annotations

from enum import Enum


class Choice(str, Enum):
    """Name one of several values; it is a string, and prints as one."""

    __str__ = str.__str__

    @classmethod
    def names(cls) -> str:
        """Return all values in one line, as help and error messages list them."""
        return ", ".join(cls)


class BackendName(Choice):
    """Name what runs a network.

    Attributes:
        AUTO: The C++ kernels where they were built, otherwise the reference.
        CPU: The C++ kernels.
        REFERENCE: PyTorch, on any device.
        TRITON: The Triton kernels, on a GPU.
    """

    AUTO = "auto"
    CPU = "cpu"
    REFERENCE = "reference"
    TRITON = "triton"


class EngineName(Choice):
    """Name what gives the photos of a batch to workers.

    Attributes:
        LOCAL: Processes of this machine.
        RAY: Actors of a Ray cluster.
    """

    LOCAL = "local"
    RAY = "ray"


class Precision(Choice):
    """Name the precision of activations on a GPU, and of products on a CPU."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Weights(Choice):
    """Name which weights of a checkpoint are read: averaged ones where there are any, or one kind alone."""

    AUTO = "auto"
    AVERAGED = "averaged"
    RAW = "raw"
