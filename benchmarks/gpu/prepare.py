"""Prepare, on a machine without a GPU, what takes time on the one that has it.

    make bench-gpu-prepare

It draws the network that is measured, packs it, and compiles the kernels that the stages launch with it, for
another GPU. Triton finds a kernel by a key. The key holds the build of Triton, its assembler, the kernel's
source and line, the types and alignment of the arguments, and the options; no path and no clock. The build
differs for each version of Python, so ``--wheel`` names the one that is used there.

An interrupted run goes on where it was. `benchmarks.gpu` uses the folder if it lies in its place.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from benchmarks.gpu.runner import ROOT, code_digest

LIMIT = 60_000_000  # bytes that may travel
_SHIPPED = ".json", ".cubin", ".ptx"  # of a compiled kernel: what running it and checking it needs
_CLEARED = "TRITON_", "MLIR_", "LLVM_", "NVPTX_"  # variables of the environment that change a key


class Refused(Exception):
    """Say in one line why nothing is prepared."""


@dataclass(frozen=True)
class Plan:
    """State what is compiled.

    Attributes:
        code: See `prepared.Manifest`.
        tiny: See there.
        gpu: See there.
        triton: See there.
        triton_key: Triton's own key as it is where the kernels run.
    """

    code: str
    tiny: bool
    gpu: str
    triton: str
    triton_key: str


def triton_key_of(wheel: Path | None) -> str:
    """Return Triton's own key: of the Triton at hand, or as a wheel of the same version has it.

    Args:
        wheel: A wheel for another version of Python, whose compiled library differs and nothing else.
    """
    import triton
    from triton.runtime.cache import triton_key

    key: str = triton_key()
    if wheel is None:
        return key
    package, library = Path(triton.__file__).parent, "triton/_C/libtriton.so"
    try:
        with ZipFile(wheel) as files:
            for name in files.namelist():
                if name.startswith("triton/") and name.endswith(".py"):
                    ours = package.parent / name
                    if not ours.exists() or ours.read_bytes() != files.read(name):
                        raise Refused(f"{wheel.name} is not Triton {triton.__version__}: {name} differs")
            there = hashlib.sha256(files.read(library)).hexdigest()
    except (OSError, BadZipFile, KeyError) as error:
        raise Refused(f"{wheel}: expected a wheel of Triton {triton.__version__} ({error})") from None
    here = hashlib.sha256((package.parent / library).read_bytes()).hexdigest()
    if key.count(here) != 1:
        raise Refused(f"the key of Triton {triton.__version__} is made otherwise than expected")
    return key.replace(here, there)


def kernels(plan: Plan, packed: Any) -> list[Any]:
    """Return what is compiled of each kernel, in an order that is the same in every process."""
    from benchmarks.gpu.kernels import distinct_launches
    from mirl_kernels.core.triton.model import GPUS

    gpu = GPUS[plan.gpu]
    shapes = [(1, 16)] if plan.tiny else None
    return list(distinct_launches(gpu.architecture, packed, gpu.workspace(), shapes))


def _begin(build: Path) -> tuple[Plan, Any]:
    """Return the plan and the packed network, after Triton's key has become that of the plan."""
    import torch
    from triton.runtime import cache

    plan = Plan(**json.loads((build / "plan.json").read_text()))
    cache.triton_key = lambda: plan.triton_key
    return plan, torch.load(build / "packed.pt", weights_only=False)  # of this very program


def write_model(build: Path) -> None:
    """Write the components of all launches; their kernels are compiled."""
    from benchmarks.gpu.components import SIDES, all_components
    from mirl_sparse.files import write_whole
    from mirl_sparse.runtime.triton_network import dense_ops
    from mirl_sparse.tickets.file import unpack

    plan, packed = _begin(build)
    packed.dense = dense_ops(unpack((build / "ticket").read_bytes())[0], packed.dtype)
    sides = dict.fromkeys(SIDES, 16) if plan.tiny else None
    model = {"gpu": plan.gpu, "components": all_components(packed, plan.gpu, sides)}
    write_whole(build / "model.json", json.dumps(model).encode())


def compile_share(build: Path, share: int, shares: int) -> None:
    """Compile a share of the kernels, and list the folders of Triton's cache that they are in.

    Args:
        build: The folder with the plan and the packed network.
        share: Which share, from 0 on.
        shares: The number of shares.
    """
    from mirl_kernels.core.triton.model import GPUS
    from mirl_kernels.core.triton.offline import compile_kernel

    plan, packed = _begin(build)
    todo = kernels(plan, packed)[share::shares]
    folders, failures = [], []
    for i, kernel in enumerate(todo, 1):
        try:
            compiled = compile_kernel(GPUS[plan.gpu].architecture, kernel)
            folders.append(str(Path(next(iter(compiled.metadata_group.values()))).parent))
        except Exception as error:  # of whatever kind: the GPU's machine will see it, too
            failures.append(f"{kernel.kernel.__name__}: {type(error).__name__}: {error}"[:300])
        print(f"process {share + 1}: {i} of {len(todo)} kernels", flush=True)
    (build / f"share-{share}.json").write_text(json.dumps({"folders": folders, "failures": failures}))


def prepare(plan: Plan, out: Path, build: Path, processes: int) -> None:
    """Prepare a folder, and say what it holds.

    Args:
        plan: What to prepare.
        out: The folder; one that is there is replaced.
        build: A folder for what is unfinished.
        processes: How many processes compile.
    """
    began = time.monotonic()
    network = _pack(plan, build)
    folders, failures = _compile(build, processes)
    _model(build)
    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    _write(plan, network, folders, build, new)
    sizes = {path.name: path.stat().st_size for path in sorted(new.iterdir())}
    for name, size in sizes.items():
        print(f"{name}: {size / 1e6:.1f} MB")
    if sum(sizes.values()) > LIMIT:
        shutil.rmtree(new)
        raise Refused(f"the folder takes {sum(sizes.values()) / 1e6:.1f} MB, more than {LIMIT / 1e6:.0f}")
    shutil.rmtree(out, ignore_errors=True)
    new.replace(out)
    for failure in failures:
        print(f"not compiled: {failure}")
    print(
        f"{out}: {len(folders)} kernels for {plan.gpu} and Triton {plan.triton}, "
        f"{sum(sizes.values()) / 1e6:.1f} of at most {LIMIT / 1e6:.0f} MB, {time.monotonic() - began:.0f} s"
    )


def _pack(plan: Plan, build: Path) -> str:
    """Write the network and its packed form into the build folder; return the digest of the network."""
    import torch

    from benchmarks.gpu.prepared import network_digest
    from benchmarks.gpu.setting import TICKET, TINY
    from benchmarks.suite.tickets import network
    from mirl_sparse.runtime.triton_network import PackedNetwork
    from mirl_sparse.tickets.file import pack, unpack

    written = build / "plan.json"
    digest = build / "network.txt"
    if written.exists() and json.loads(written.read_text()) == asdict(plan) and digest.exists():
        return digest.read_text()
    for path in (digest, build / "model.json"):
        path.unlink(missing_ok=True)
    build.mkdir(parents=True, exist_ok=True)
    print("drawing and packing the network", flush=True)
    ticket = pack(network(*TICKET, TINY if plan.tiny else None), {})
    drawn = unpack(ticket)[0]
    packed = PackedNetwork(drawn, torch.float16)
    packed.dense = {}  # quickly made again
    torch.save(packed, build / "packed.pt")
    (build / "ticket").write_bytes(ticket)
    written.write_text(json.dumps(asdict(plan)))
    digest.write_text(network_digest(drawn))
    return digest.read_text()


def _compile(build: Path, processes: int) -> tuple[list[Path], list[str]]:
    """Compile all kernels; return their folders in Triton's cache, and what failed."""
    running = [_start(build, "--share", f"{i}/{processes}") for i in range(processes)]
    try:
        failed = [process.wait() for process in running]
    finally:
        for process in running:
            process.kill()
    if any(failed):
        raise Refused("a process that compiles failed; what is compiled is not compiled again the next time")
    shares = [json.loads((build / f"share-{i}.json").read_text()) for i in range(processes)]
    folders = sorted({Path(folder) for share in shares for folder in share["folders"]})
    return folders, [failure for share in shares for failure in share["failures"]]


def _model(build: Path) -> None:
    """Write the components of all launches into the build folder, if they are not there."""
    if not (build / "model.json").exists():
        print("counting what the launches do", flush=True)
        if _start(build, "--model").wait():
            raise Refused("the process that counts what the launches do failed")


def _start(build: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start this program in an environment in which Triton's keys are those of any other machine."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_CLEARED)}
    environment |= {"TRITON_CACHE_DIR": str(build / "triton"), "OMP_NUM_THREADS": "1"}
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-m", "benchmarks.gpu.prepare", "--build", str(build), *words]
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def _write(plan: Plan, network: str, folders: list[Path], build: Path, new: Path) -> None:
    from benchmarks.gpu.prepared import KERNELS, MODEL, PACKED, TICKET, Manifest, digest

    for name, source in ((TICKET, "ticket"), (PACKED, "packed.pt"), (MODEL, "model.json")):
        with (build / source).open("rb") as file, lzma.open(new / name, "wb") as packed:
            shutil.copyfileobj(file, packed)
    with tarfile.open(new / KERNELS, "w:xz") as archive:
        for path in _shipped(folders):
            archive.add(path, f"{path.parent.name}/{path.name}", filter=_anonymous)
    Manifest(
        plan.code, plan.tiny, plan.gpu, plan.triton, digest(plan.triton_key), network, len(folders)
    ).write(new)


def _shipped(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix in _SHIPPED and not path.name.startswith("__grp__"):
                yield path


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who wrote a file, and when."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _checked(asked: argparse.Namespace) -> Plan:
    """Return the plan for what is asked."""
    import triton
    from triton._C.libtriton import get_cache_invalidating_env_vars

    from mirl_kernels.core.triton.model import GPUS

    nvidia = [name for name, gpu in GPUS.items() if gpu.architecture.startswith("sm_")]
    if asked.target not in nvidia:
        raise Refused(f"--target is {asked.target}; expected one of {', '.join(nvidia)}")
    if triton.__version__ != asked.triton:
        raise Refused(
            f"this environment has Triton {triton.__version__}, the kernels are for {asked.triton}:"
            f" make bench-gpu-prepare TRITON={asked.triton} makes an environment for it"
        )
    disturbing = [name for name in get_cache_invalidating_env_vars() if not name.startswith(_CLEARED)]
    if disturbing:
        raise Refused(f"unset {', '.join(sorted(disturbing))}: it changes what is compiled")
    return Plan(code_digest(), asked.tiny, asked.target, asked.triton, triton_key_of(asked.wheel))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.prepare", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu/prepared"), help="folder")
    parser.add_argument("--target", default="H200", help="name of the GPU")
    parser.add_argument("--triton", default="3.6.0", help="version of Triton there")
    parser.add_argument("--wheel", type=Path, help="wheel of Triton there, where Python is another version")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many processes compile")
    parser.add_argument("--tiny", action="store_true", help="the network of the rehearsals")
    parser.add_argument("--build", type=Path, default=ROOT / "build/gpu", help="folder for unfinished work")
    parser.add_argument("--share", help=argparse.SUPPRESS)  # what the processes do that this one starts
    parser.add_argument("--model", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.model:
        write_model(asked.build)
        return
    if asked.share:
        share, shares = map(int, asked.share.split("/"))
        compile_share(asked.build, share, shares)
        return
    try:
        prepare(_checked(asked), asked.out, asked.build.resolve(), max(1, asked.processes))
    except Refused as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
