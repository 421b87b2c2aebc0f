"""Compiling Triton kernels for GPUs that are not here, and reading what became of them: registers, spills, shared memory,
and the instructions of the tensor cores.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Shared memory that one program may have, in bytes (CUDA programming guide, table of compute capabilities; CDNA ISA guides).
SHARED = {
    "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_120": 99 << 10,
    "gfx90a": 64 << 10, "gfx942": 64 << 10,
}  # fmt: skip
_TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma_\w+)")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture; ``tensor`` are its tensor-core instructions by name, ``spilled`` in bytes (NVIDIA) or
    registers (AMD)."""

    architecture: str
    registers: int
    spilled: int
    shared: int
    tensor: frozenset[str]
    code: str


def target(architecture: str) -> GPUTarget:
    """Triton's name for one of SHARED's architectures."""
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


def compile_for(
    architecture: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, stages: int = 2
) -> Compiled:
    """Compile a kernel whose arguments have these types ("*fp16", "i32", ...) and constants. As for a launch, pointers and
    the strides named ``*_batch`` are taken to be multiples of 16."""
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(kernel.arg_names)
        if n not in constants and (types[n].startswith("*") or n.endswith("_batch"))
    }
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, aligned)
    done = triton.compile(source, target=target(architecture), options={"num_warps": warps, "num_stages": stages})
    if architecture.startswith("sm_"):
        code = done.asm["ptx"]
        registers, spilled = _read_ptxas(code, architecture)
    else:
        code = done.asm["amdgcn"]
        registers = int(_field(code, r"\.vgpr_count:\s*(\d+)"))
        spilled = int(_field(code, r"\.vgpr_spill_count:\s*(\d+)")) + int(_field(code, r"\.sgpr_spill_count:\s*(\d+)"))
    tensor = frozenset(_TENSOR_CORES.findall(code))
    return Compiled(architecture, registers, spilled, done.metadata.shared, tensor, code)


def _field(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"{pattern!r} is not in what the compiler printed: {text[-500:]}")
    return found.group(1)


def _read_ptxas(ptx: str, architecture: str) -> tuple[int, int]:
    """Registers of a thread and bytes it spills, as ptxas counts them."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    capability = int(architecture.removeprefix("sm_"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        words = [get_ptxas(capability).path, "-v", f"-arch={sm_arch_from_capability(capability)}", str(path)]
        printed = subprocess.run(
            [*words, "-o", f"{folder}/kernel.cubin"], capture_output=True, text=True, check=True
        ).stderr
    spills = sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", printed)))
    return int(_field(printed, r"Used (\d+) registers")), spills
