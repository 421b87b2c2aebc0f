"""Build the WebAssembly modules of the web package: ``make web``.

    python kernels/web.py [-o mirl_sparse/web/wasm]

Clang compiles (the package ``ziglang`` has it, with a C++ library for WebAssembly). There is a module for
every combination of what browsers may lack: relaxed SIMD, which has fused multiply-add, and threads, which
need memory that pages get only under special headers. ``mirl_sparse/web/src/engine.js`` chooses among them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ziglang

ROOT = Path(__file__).parents[1]
SOURCES = Path(__file__).parent / "mirl_kernels"
CORE = SOURCES / "core" / "cpu" / "src"

CORE_SOURCES = """
    cpu strips bfloat16 bfloat16_unit processor registry scratch program plan runtime photo wasm wasm_memory
    wasm_threads
"""

# What a module needs of the browser, by the beginning of its name. Browsers that have SIMD have the rest too;
# where pages get no shared memory, atomic instructions do no harm.
BASE = "generic+simd128+bulk_memory+nontrapping_fptoint+sign_ext+mutable_globals+atomics"
PROCESSORS = {"simd": BASE, "relaxed": f"{BASE}+relaxed_simd"}

# As in CMakeLists.txt. `-fignore-exceptions`: browsers have C++'s exceptions only since lately.
FLAGS = """
    -std=c++17 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wall -Wextra -Wno-psabi
    -fignore-exceptions -fno-rtti -fno-threadsafe-statics -fvisibility=hidden -DMIRL_PROGRAMS_ONLY
    -DMIRL_ISA=portable -DMIRL_LANES=4 -DMIRL_LANES_portable=4
"""
LINK = """
    -mexec-model=reactor -Wl,--gc-sections -Wl,--strip-all -Wl,-z,stack-size=1048576
    -Wl,--initial-memory=4194304
"""
# By the end of the name. Zig takes no more memory than 4294901760 bytes, one page less than there can be.
LINKS = {
    "": LINK,
    "-threads": f"""
        {LINK} -Wl,--max-memory=4294901760 -Wl,--shared-memory -Wl,--import-memory
        -Wl,--export=__stack_pointer -Wl,--export=__wasm_init_tls -Wl,--export=__tls_size
    """,
}


def sources() -> list[Path]:
    """Return what runs programs, and more that the linker leaves out; nothing of training."""
    return [CORE / f"{name}.cpp" for name in CORE_SOURCES.split()] + sorted(SOURCES.glob("ops/*/cpu.cpp"))


def build(name: str, output: Path) -> list[Path]:
    """Build the modules for a processor into a folder.

    Args:
        name: A key of `PROCESSORS`.
        output: The folder; it is made if need be.

    Returns:
        The modules, one for each of `LINKS`.

    Raises:
        subprocess.CalledProcessError: The build failed; the compiler says why.
    """
    output.mkdir(parents=True, exist_ok=True)
    zig = [str(Path(*ziglang.__path__, "zig")), "c++", "-target", "wasm32-wasi"]
    modules = []
    with tempfile.TemporaryDirectory() as temporary:

        def compiled(source: Path) -> str:
            target = Path(temporary, "_".join(source.relative_to(SOURCES).parts)).with_suffix(".o")
            flags = [f"-mcpu={PROCESSORS[name]}", *FLAGS.split(), "-I", str(CORE)]
            subprocess.run([*zig, *flags, "-c", str(source), "-o", str(target)], check=True)
            return str(target)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sources()))
        for ending, flags in LINKS.items():
            modules.append(output / f"{name}{ending}.wasm")
            # For every processor that of the base: Zig compiles a C++ library for each that it sees here.
            command = [*zig, f"-mcpu={BASE}", *flags.split(), *objects, "-o", str(modules[-1])]
            subprocess.run(command, check=True)
    return modules


def main() -> None:
    """Build all modules."""
    parser = argparse.ArgumentParser(description="Build the WebAssembly modules of the web package.")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "mirl_sparse" / "web" / "wasm")
    options = parser.parse_args()
    for name in PROCESSORS:
        for module in build(name, options.output):
            print(f"{module}  {module.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
