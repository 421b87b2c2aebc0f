"""Compiling Triton kernels for GPUs that are not here, and reading what became of them: spills, shared memory, the instructions in
their loops and those of the tensor cores.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mirl_kernels.core.triton import Launch, Tile, least

# Shared memory that one program may have, in bytes (CUDA programming guide, table of compute capabilities; CDNA ISA guides).
SHARED = {
    "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "sm_120": 99 << 10,
    "gfx90a": 64 << 10, "gfx942": 64 << 10,
}  # fmt: skip
_TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma_\w+)")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture; ``tensor`` are its tensor-core instructions by name, ``spilled`` in bytes (NVIDIA) or
    registers (AMD). ``loops`` are the instructions in the body of each loop, without those of loops inside it, in the order of
    the source, and ``outside`` those in none."""

    spilled: int
    shared: int
    tensor: frozenset[str]
    loops: tuple[int, ...]
    outside: int


def target(architecture: str) -> GPUTarget:
    """Triton's name for one of SHARED's architectures."""
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


_KINDS = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}


def specialised(launch: Launch) -> tuple[Any, ...]:
    """What a launch is compiled for, as Triton does it: the kernel, its constants (ones and what is not there among them), types,
    which arguments are multiples of 16 and which tensors' memory ends within 2 GiB, warps and stages."""
    types, constants, aligned, near = {}, {}, set(), set()
    names = [p.name for p in launch.kernel.params if p.is_constexpr]
    general = [p.name for p in launch.kernel.params if p.do_not_specialize]
    for name, value in launch.arguments.items():
        if name in names or value is None or (isinstance(value, int) and value == 1 and name not in general):
            constants[name] = value
        elif isinstance(value, Tensor):
            types[name] = f"*{_KINDS[value.dtype]}"
            if value.storage_offset() * value.itemsize % 16 == 0:  # memory itself starts at more than that
                aligned.add(name)
            if value.untyped_storage().nbytes() < 1 << 31:
                near.add(name)
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32" if value < 1 << 31 else "i64"
            if isinstance(value, int) and value % 16 == 0 and name not in general:
                aligned.add(name)
    return (
        launch.kernel,
        frozenset(types.items()),
        frozenset(constants.items()),
        frozenset(aligned),
        frozenset(near),
        *launch.tile[1:],
    )


_ONE_PARSES = threading.RLock()


class _Source(ASTSource):
    """A kernel, which one thread at a time parses: Python 3.11's parser is not safe otherwise, and gains nothing by several. What takes
    the time, the compiler proper, needs no lock."""

    def hash(self) -> str:
        with _ONE_PARSES:
            return str(super().hash())

    def make_ir(self, *args: Any, **more: Any) -> Any:
        with _ONE_PARSES:
            return super().make_ir(*args, **more)


@cache
def _compile(architecture: str, key: tuple[Any, ...]) -> Compiled:
    kernel, types, constants, aligned, near, *tile = key[0], dict(key[1]), dict(key[2]), *key[3:]
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    amd = architecture.startswith("gfx")
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for i, name in enumerate(kernel.arg_names):
        known = [["tt.divisibility", 16]] * (name in aligned) + [["tt.pointer_range", 32]] * (
            amd and name in near
        )
        if known:
            attributes[i,] = known
    source = _Source(
        kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()}, attributes
    )
    done = triton.compile(source, target=target(architecture), options=Tile({}, *tile).options(amd))
    if not amd:
        code = done.asm["ptx"]
        spilled = _ptxas_spills(code, architecture)
    else:
        code = done.asm["amdgcn"]
        found = re.findall(r"\.[vs]gpr_spill_count:\s*(\d+)", code)
        if len(found) != 2:
            raise ValueError(f"the compiler for {architecture} does not say what it spilled: {code[-500:]}")
        spilled = sum(map(int, found))
    tensor = frozenset(_TENSOR_CORES.findall(code))
    return Compiled(spilled, done.metadata.shared, tensor, *_loops(code))


def compile_for(architecture: str, launch: Launch) -> tuple[Launch, Compiled]:
    """A launch in the tile that it would have on one of SHARED's architectures, and what its kernel is compiled to."""
    made = ((one, _compile(architecture, specialised(one))) for one in (launch, *launch.others))
    return least(made, lambda one: one[1].spilled + ((one[1].shared > SHARED[architecture]) << 30))


def compile_ahead(architecture: str, launches: Iterable[Launch]) -> None:
    """What `compile_for` will be asked for, as many kernels at a time as PyTorch has threads."""
    distinct = {specialised(launch): launch for launch in launches}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(lambda launch: compile_for(architecture, launch), distinct.values()))


_BLOCK = re.compile(r"^(?:\$L__|\.L)?(BB\w+):|^\s*[;/]+\s*%bb\.\d+:")
_HEADER = re.compile(r"=>\s*This (?:Inner )?Loop Header")
_WITHIN = re.compile(r"in Loop: Header=(BB\w+)")


def _loops(code: str) -> tuple[tuple[int, ...], int]:
    """Instructions in the bodies of the loops of a kernel in PTX or GCN assembly, and outside of them, by the compiler's comments
    on every block. Those of PTX are within about a tenth of what ptxas makes of them, whose own loops are harder to tell."""
    blocks = [_Block()]
    for line in code.splitlines():
        if found := _BLOCK.match(line):
            blocks.append(_Block(found.group(1) or ""))
        block, text = blocks[-1], line.strip()
        if _HEADER.search(line):
            block.loop, block.header = block.name, True
        elif found := _WITHIN.search(line):
            block.loop = found.group(1)
        block.left |= ".epil.preheader" in line
        block.count += line[:1].isspace() and bool(text) and text[0] not in "./;{}()"
    count: Counter[str] = Counter()
    order: list[str] = []
    for before, block in pairwise([_Block(), *blocks]):
        count[block.loop] += block.count
        if block.header and before.left:  # what is left of an unrolled loop: its body once
            order[-1] = block.loop
        elif block.header:
            order.append(block.loop)
        elif before.left:  # the same without a loop: the body was there twice
            count[order[-1]] //= 2
    return tuple(count[name] for name in order), count[""]


@dataclass
class _Block:
    """A basic block: the loop that it is in, whether it is its first, and whether what is left of an unrolled one is behind it."""

    name: str = ""
    loop: str = ""
    header: bool = False
    left: bool = False
    count: int = 0


def _ptxas_spills(ptx: str, architecture: str) -> int:
    """Bytes that a thread spills, as ptxas counts them."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    capability = int(architecture.removeprefix("sm_"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        words = [get_ptxas(capability).path, "-v", f"-arch={sm_arch_from_capability(capability)}", str(path)]
        printed = subprocess.run(
            [*words, "-o", f"{folder}/kernel.cubin"], capture_output=True, text=True, check=True
        ).stderr
    found = re.findall(r"(\d+) bytes spill (?:stores|loads)", printed)
    if not found:
        raise ValueError(f"ptxas for {architecture} does not say what it spilled: {printed[-500:]}")
    return sum(map(int, found))
