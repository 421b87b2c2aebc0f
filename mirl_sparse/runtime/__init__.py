"""Run packed networks on the CPU, on GPUs or by plain PyTorch, on images of any size.

To import the package registers the op ``mirl::restore``, which saved models need.
"""

from mirl_sparse.runtime.allocator import Allocator
from mirl_sparse.runtime.backends import BACKENDS, Backend
from mirl_sparse.runtime.cpu import CpuEngine, StepProfile
from mirl_sparse.runtime.engine import Engine
from mirl_sparse.runtime.reference import ReferenceEngine
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.runtime.triton import TritonEngine
from mirl_sparse.runtime.tuning import Tuning, read_tuning, tuning_path

__all__ = [
    "BACKENDS",
    "Allocator",
    "Backend",
    "CpuEngine",
    "Engine",
    "ReferenceEngine",
    "SparseRestorer",
    "StepProfile",
    "TritonEngine",
    "Tuning",
    "read_tuning",
    "tuning_path",
]
