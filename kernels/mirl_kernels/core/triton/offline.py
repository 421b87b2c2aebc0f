"""Compile Triton kernels for GPUs that are not here, and read the result.

The result tells what spills, the shared memory, the instructions in each loop, and those of the tensor cores.
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
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from mirl_kernels.core.triton.hazards import hazards_of
from mirl_kernels.core.triton.launches import DEPENDENT, MISCOMPILED, OUT_OF_RESOURCES, Launch
from mirl_kernels.core.triton.tuner import Tile, cheapest

# Bytes of shared memory that one program may have, by architecture (CUDA programming guide, table of compute
# capabilities; CDNA ISA guides).
SHARED_MEMORY = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_120": 99 << 10,
    "gfx90a": 64 << 10,
    "gfx942": 64 << 10,
}


class Residency(NamedTuple):
    """State what the programs that a processor runs at the same time share, by the same documents.

    Attributes:
        registers: Registers of 32 bits.
        shared: Bytes of shared memory.
        warps: The most warps.
        programs: The most programs.
    """

    registers: int
    shared: int
    warps: int
    programs: int


RESIDENCY = {
    "sm_80": Residency(1 << 16, 164 << 10, 64, 32),
    "sm_86": Residency(1 << 16, 100 << 10, 48, 16),
    "sm_89": Residency(1 << 16, 100 << 10, 48, 24),
    "sm_90": Residency(1 << 16, 228 << 10, 64, 32),
    "sm_100": Residency(1 << 16, 228 << 10, 64, 32),
    "sm_120": Residency(1 << 16, 100 << 10, 48, 24),
    "gfx90a": Residency(1 << 17, 64 << 10, 32, 32),
    "gfx942": Residency(1 << 17, 64 << 10, 32, 32),
}
_RESERVED_SHARED = 1 << 10  # bytes of each program that the system takes (NVIDIA, from sm_80 on)
_TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma|v_mfma_\w+)")


@dataclass(frozen=True)
class Compiled:
    """Describe one kernel that is compiled for one architecture.

    Attributes:
        spilled: What a thread spills, in bytes (NVIDIA) or registers (AMD).
        registers: Registers of a thread.
        shared: Bytes of shared memory.
        tensor: The names of its tensor-core instructions.
        loops: The number of instructions in the body of each loop, without those of the loops inside it, in
            the order of the source.
        waits: Whether each loop waits for memory in every trip: it loads what it needs in the same trip.
        outside: The number of instructions outside all loops.
        hazards: What `hazards.find_hazards` found in the machine code.
    """

    spilled: int
    registers: int
    shared: int
    tensor: frozenset[str]
    loops: tuple[int, ...]
    waits: tuple[bool, ...]
    outside: int
    hazards: tuple[str, ...] = ()

    def resident(self, architecture: str, warps: int) -> int:
        """Return how many programs of so many warps a processor runs at the same time, at least one."""
        return resident_programs(architecture, self.registers, self.shared, warps)


def resident_programs(architecture: str, registers: int, shared: int, warps: int) -> int:
    """Return how many programs a processor runs at the same time, at least one.

    Args:
        architecture: One of `RESIDENCY`.
        registers: Registers of a thread.
        shared: Bytes of shared memory of a program.
        warps: Warps of a program.
    """
    all_of, lanes = RESIDENCY[architecture], 64 if is_amd(architecture) else 32
    fitting = (
        all_of.registers // (max(1, registers) * lanes * warps),
        all_of.shared // (shared + _RESERVED_SHARED),
        all_of.warps // warps,
        all_of.programs,
    )
    return max(1, min(fitting))


def is_amd(architecture: str) -> bool:
    """Return whether an architecture is one of AMD's."""
    return architecture.startswith("gfx")


def target(architecture: str) -> GPUTarget:
    """Return Triton's target for an architecture of `SHARED_MEMORY`."""
    if is_amd(architecture):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


@dataclass(frozen=True)
class Specialisation:
    """State what a launch is compiled for, as Triton itself decides it.

    Attributes:
        kernel: The kernel, as `triton.jit` returns it.
        signature: The names and types of the arguments; constants are of type "constexpr".
        constants: The places and values of the constants, of integers that are 1, and of arguments that are
            None.
        attributes: The places of arguments and what is known about them: that they are multiples of 16, say.
        warps: See `Tile`.
        pipelined: See `Tile`.
        dependent: See `Workspace`.
    """

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    attributes: tuple[tuple[tuple[int, ...], tuple[tuple[str, int], ...]], ...]
    warps: int
    pipelined: bool
    dependent: bool


@cache
def _binder(architecture: str, kernel: Any) -> tuple[Any, Any]:
    """Return Triton's backend for an architecture, and its function that specialises the arguments."""
    backend = make_backend(target(architecture))
    return backend, create_function_from_signature(kernel.signature, kernel.params, backend)


def _as_on_a_gpu(argument: Any) -> Any:
    """Return an argument as Triton sees it on a GPU, where memory starts at a multiple of 16."""
    if not isinstance(argument, Tensor) or argument.device.type != "cpu":
        return argument
    memory = torch.empty(
        argument.untyped_storage().nbytes() // argument.itemsize, dtype=argument.dtype, device="meta"
    )
    return memory.as_strided(argument.shape, argument.stride(), argument.storage_offset())


def specialised(architecture: str, launch: Launch) -> Specialisation:
    """Return what a launch is compiled for.

    Args:
        architecture: One of `SHARED_MEMORY`.
        launch: The launch; its tensors may be on any device.
    """
    kernel = launch.kernel
    backend, bind = _binder(architecture, kernel)
    arguments = {name: _as_on_a_gpu(value) for name, value in launch.arguments.items()}
    bound, special, options = bind(**arguments, **launch.options(is_amd(architecture)))
    _, signature, constants, attributes = kernel._pack_args(backend, options, bound, special, options)
    return Specialisation(
        kernel,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple((place, tuple(map(tuple, known))) for place, known in attributes.items()),
        launch.tile.warps,
        launch.tile.pipelined,
        bool(launch.arguments.get(DEPENDENT)),
    )


_ONE_PARSES = threading.RLock()


class _Source(ASTSource):
    """A kernel that one thread at a time parses.

    Python 3.11's parser is not safe otherwise, and gains nothing by several threads. The compiler proper,
    which takes most of the time, needs no lock.
    """

    def hash(self) -> str:
        with _ONE_PARSES:
            return str(super().hash())

    def make_ir(self, *args: Any, **more: Any) -> Any:
        with _ONE_PARSES:
            return super().make_ir(*args, **more)


def compile_kernel(architecture: str, special: Specialisation) -> Any:
    """Compile a kernel; return what `triton.compile` returns.

    Triton caches it under the same key as if the kernel were launched on such a GPU.
    """
    attributes = {place: [list(each) for each in known] for place, known in special.attributes}
    source = _Source(special.kernel, dict(special.signature), dict(special.constants), attributes)
    tile = Tile({}, special.warps, special.pipelined)
    options = tile.options(is_amd(architecture), special.dependent)
    return triton.compile(source, target=target(architecture), options=options)


@cache
def _compile(architecture: str, special: Specialisation) -> Compiled:
    amd, result = is_amd(architecture), compile_kernel(architecture, special)
    code = result.asm["amdgcn" if amd else "ptx"]
    spilled, registers = (_amd_report if amd else _ptxas_report)(code, architecture)
    tensor = frozenset(_TENSOR_CORES.findall(code))
    hazards = tuple(hazards_of(result))
    return Compiled(spilled, registers, result.metadata.shared, tensor, *_loops(code), hazards)


def compile_for(architecture: str, launch: Launch) -> tuple[Launch, Compiled]:
    """Return a launch in the tile that it would have on a GPU, and what its kernel is compiled to.

    Args:
        architecture: One of `SHARED_MEMORY`.
        launch: The launch, with its alternatives.
    """
    compiled = (
        (one, _compile(architecture, specialised(architecture, one)))
        for one in (launch, *launch.alternatives)
    )

    def cost(choice: tuple[Launch, Compiled]) -> int:
        too_much = choice[1].shared > SHARED_MEMORY[architecture]
        return choice[1].spilled + too_much * OUT_OF_RESOURCES + bool(choice[1].hazards) * MISCOMPILED

    return cheapest(compiled, cost)


def compile_ahead(architecture: str, launches: Iterable[Launch]) -> None:
    """Compile what `compile_for` will be asked for, as many kernels at a time as PyTorch has threads."""
    distinct = {specialised(architecture, launch): launch for launch in launches}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(lambda launch: compile_for(architecture, launch), distinct.values()))


_BLOCK = re.compile(r"^(?:\$L__|\.L)?(BB\w+):|^\s*[;/]+\s*%bb\.\d+:")
_HEADER = re.compile(r"=>\s*This (?:Inner )?Loop Header")
_WITHIN = re.compile(r"in Loop: Header=(BB\w+)")


_LOAD = re.compile(r"\b(?:ld\.global|global_load|buffer_load)")
# Triton writes a zero into the registers that a load without a mask fills, and ptxas drops the zero.
_ZERO = re.compile(r"^\s*mov\.\w+ (%\w+), 0x0;")
_UNMASKED = re.compile(r"^\s*ld\.global\S* \{([^}]*)\}")


def _loops(code: str) -> tuple[tuple[int, ...], tuple[bool, ...], int]:
    """Return of each loop of PTX or GCN assembly its instructions and whether it waits, and those outside.

    They are read from the compiler's comments on every block. Those of PTX are within about a tenth of what
    ptxas makes of them, whose own loops are harder to tell. A loop waits if it loads into registers: copies
    to shared memory (cp.async) are waited for in a later trip.
    """
    blocks, zeros = [_Block()], set[str]()
    for line in code.splitlines():
        if match := _BLOCK.match(line):
            blocks.append(_Block(match.group(1) or ""))
        block, text = blocks[-1], line.strip()
        if _HEADER.search(line):
            block.loop, block.header = block.name, True
        elif match := _WITHIN.search(line):
            block.loop = match.group(1)
        block.remainder_follows |= ".epil.preheader" in line
        block.loads += bool(_LOAD.search(line))
        block.count += line[:1].isspace() and bool(text) and text[0] not in "./;{}()"
        if match := _ZERO.match(line):
            zeros.add(match.group(1))
        elif match := _UNMASKED.match(line):
            block.count -= len(zeros & set(re.findall(r"%\w+", match.group(1))))
            zeros.clear()
    count: Counter[str] = Counter()
    loads: Counter[str] = Counter()
    order: list[str] = []
    for before, block in pairwise([_Block(), *blocks]):
        count[block.loop] += block.count
        loads[block.loop] += block.loads
        if block.header and before.remainder_follows:  # a loop of an unrolled body's remainder: the body once
            order[-1] = block.loop
        elif block.header:
            order.append(block.loop)
        elif before.remainder_follows:  # the remainder without a loop: the body was there twice
            count[order[-1]] //= 2
    waits = tuple(loads[name] > 0 for name in order)
    return tuple(count[name] for name in order), waits, count[""]


@dataclass
class _Block:
    """A basic block: its loop, whether it is the header, and whether an unrolled loop's remainder follows."""

    name: str = ""
    loop: str = ""
    header: bool = False
    remainder_follows: bool = False
    count: int = 0
    loads: int = 0


def _amd_report(code: str, architecture: str) -> tuple[int, int]:
    """Return how many registers a thread spills, and how many it has."""
    counts = re.findall(r"\.[vs]gpr_spill_count:\s*(\d+)", code)
    if len(counts) != 2:
        raise ValueError(f"the compiler for {architecture} does not say what it spilled: {code[-500:]}")
    registers = re.search(r"\.vgpr_count:\s*(\d+)", code)
    return sum(map(int, counts)), int(registers.group(1)) if registers else 0


def _ptxas_report(ptx: str, architecture: str) -> tuple[int, int]:
    """Return the bytes that a thread spills, and its registers, as ptxas counts them."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    capability = int(architecture.removeprefix("sm_"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        words = [get_ptxas(capability).path, "-v", f"-arch={sm_arch_from_capability(capability)}", str(path)]
        words += ["-o", f"{folder}/kernel.cubin"]
        printed = subprocess.run(words, capture_output=True, text=True, check=True).stderr
    counts = re.findall(r"(\d+) bytes spill (?:stores|loads)", printed)
    if not counts:
        raise ValueError(f"ptxas for {architecture} does not say what it spilled: {printed[-500:]}")
    registers = re.search(r"Used (\d+) registers", printed)
    return sum(map(int, counts)), int(registers.group(1)) if registers else 0
