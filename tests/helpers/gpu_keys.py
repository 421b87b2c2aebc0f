"""Do what a machine with a GPU does with prepared kernels, on one without: in a process of its own.

python gpu_keys.py keys GPU PACKED          prints Triton's key of every kernel, as a launch makes it
python gpu_keys.py launch GPU PACKED N      compiles N of them as a launch does, with a compiler that fails
python gpu_keys.py compile GPU PACKED N     compiles N of them ahead, and prints their folders
"""

import json
import os
import sys
from pathlib import Path

import torch
import triton.compiler.compiler as compiler
from triton import knobs
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from benchmarks.gpu import kernels, prepared
from benchmarks.gpu.runner import TRITON_CACHE, WORK
from mirl_kernels.core.triton.model import GPUS
from mirl_kernels.core.triton.offline import compile_kernel, target

FEW = [(1, 16)]  # one small image


class Driver:
    """Answer what Triton asks a driver before it launches a kernel."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return target(GPUS[sys.argv[2]].architecture)


class Reached(Exception):
    """The compiler would look into its cache now."""


def keys(distinct):
    def key_only(key):
        raise Reached(key)

    compiler.get_cache_manager = key_only
    for launch in distinct.values():
        try:
            kernels._warmed(launch)
        except Reached as reached:
            yield str(reached)


def main():
    mode, gpu, packed, *count = sys.argv[1:]
    network = torch.load(packed, weights_only=False)
    distinct = kernels.distinct_launches(GPUS[gpu].architecture, network, GPUS[gpu].workspace(), FEW)
    few = dict(list(distinct.items())[: int(count[0])]) if count else distinct
    if mode == "compile":
        compiled = [compile_kernel(GPUS[gpu].architecture, special) for special in few]
        print(json.dumps([str(Path(next(iter(c.metadata_group.values()))).parent) for c in compiled]))
        return
    driver.set_active(Driver())
    if mode == "keys":
        print(json.dumps(sorted(keys(distinct))))
        return
    figure = prepared.adopt(False, f"NVIDIA {gpu}")
    assert figure.value == "yes", figure.facts
    os.environ["TRITON_CACHE_DIR"] = str(Path(os.environ[WORK], TRITON_CACHE))

    def fails(*_):
        raise AssertionError("the kernel is compiled again")

    CUDABackend.add_stages = fails
    hits = []
    knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    made = [kernels._warmed(launch) for launch in few.values()]
    print(
        json.dumps(
            {
                "hits": hits,
                "binaries": [len(kernel.asm["cubin"]) for kernel in made],
                "checked": ["ptx" in kernel.asm for kernel in made],
            }
        )
    )


if __name__ == "__main__":
    main()
