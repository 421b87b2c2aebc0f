"""Hold what `prepare` makes on a machine without a GPU, and use it where one is: the network and kernels.

What is prepared is used for the same code, GPU and Triton alone. Whatever the stages pack or draw themselves
lies in the work folder of the run, so that it is made once.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.runner import PREPARED, TRITON_CACHE, WORK, code_digest
from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.files import write_whole
from mirl_sparse.performance.gpu_bench import known_gpu
from mirl_sparse.runtime.triton_network import PackedNetwork, dense_ops
from mirl_sparse.tickets.file import pack, unpack

MANIFEST, TICKET, PACKED, KERNELS = "manifest.json", "ticket.xz", "packed.xz", "kernels.tar.xz"
MODEL = "model.json.xz"
_TICKET = "network.ticket.safetensors"  # in the work folder


@dataclass(frozen=True)
class Manifest:
    """State what a prepared folder is for.

    Attributes:
        code: `runner.code_digest` of the code.
        tiny: Whether the network is the one of rehearsals.
        gpu: The GPU, one of `mirl_kernels.core.triton.model.GPUS`.
        triton: The version of Triton.
        triton_digest: `digest` of Triton's own key, which depends on its build and thereby on Python's
            version.
        network: `network_digest` of the packed network.
        kernels: The number of compiled kernels.
    """

    code: str
    tiny: bool
    gpu: str
    triton: str
    triton_digest: str
    network: str
    kernels: int

    def write(self, folder: Path) -> None:
        """Write the manifest into a folder."""
        write_whole(folder / MANIFEST, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder; ValueError says that it is none."""
        try:
            return cls(**json.loads((folder / MANIFEST).read_text()))
        except TypeError as error:  # other fields
            raise ValueError(str(error)) from None

    def mismatch(self, tiny: bool, gpu: str) -> str | None:
        """Return why the folder is of no use in this process, or None.

        Args:
            tiny: Whether this is a rehearsal, which needs no kernels.
            gpu: The name of the GPU here.
        """
        import triton
        from triton.runtime.cache import triton_key

        if self.code != code_digest():
            return "it was prepared from other code"
        if self.tiny != tiny:
            return f"it holds the {'tiny' if self.tiny else 'full-size'} network"
        if tiny:
            return None
        if self.gpu != known_gpu(gpu):
            return f"it was prepared for an {self.gpu}, this is an {gpu}"
        if self.triton != triton.__version__:
            return f"it was prepared for Triton {self.triton}, this is {triton.__version__}"
        if self.triton_digest != digest(triton_key()):
            return f"it was prepared for another build of Triton {self.triton}, perhaps for another Python"
        return None


def digest(text: str) -> str:
    """Return a digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def adopt(rehearsal: bool, gpu: str) -> Figure:
    """Unpack what is prepared into the work folder, if it fits; return what came of it.

    Args:
        rehearsal: Whether this is a rehearsal.
        gpu: The name of the GPU.
    """
    folder, work = Path(os.environ.get(PREPARED, "")), _work()
    if work is None or not (folder / MANIFEST).exists():
        return Figure("prepared", "no", facts={"why": "nothing is prepared; make bench-gpu-prepare does it"})
    try:
        manifest = Manifest.read(folder)
        why = manifest.mismatch(rehearsal, gpu)
        if why is None:
            _unpack(folder, manifest, work)
    except (OSError, ValueError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        why = f"it cannot be read ({type(error).__name__}: {error})"
    if why is not None:
        return Figure("prepared", "no", facts={"why": why})
    return Figure("prepared", "yes", facts={"kernels": manifest.kernels})


def _work() -> Path | None:
    """Return the work folder of the run, or None where no run has started this process."""
    folder = os.environ.get(WORK)
    return Path(folder) if folder else None


def _unpack(folder: Path, manifest: Manifest, work: Path) -> None:
    packed_path = _packed_path(work, manifest.network, torch.float16)
    for name, path in ((TICKET, work / _TICKET), (PACKED, packed_path)):
        with lzma.open(folder / name) as packed, path.with_suffix(".new").open("wb") as file:
            shutil.copyfileobj(packed, file)
        path.with_suffix(".new").replace(path)
    shutil.copyfile(folder / MODEL, work / MODEL)
    if manifest.tiny:
        return
    new, kernels = work / "kernels.new", work / TRITON_CACHE
    with tarfile.open(folder / KERNELS) as archive:
        archive.extractall(new, filter="data")
    for kernel in new.iterdir():
        _list_files(kernel, kernels / kernel.name)
    new.replace(kernels)


def _list_files(kernel: Path, final: Path) -> None:
    """Write the list of a kernel's files that Triton looks for; it has their absolute paths."""
    files = {path.name: str(final / path.name) for path in sorted(kernel.iterdir())}
    description = next(name for name in files if name.endswith(".json"))
    (kernel / f"__grp__{description}").write_text(json.dumps({"child_paths": files}))


def prepared_components() -> tuple[str, dict[str, Any]] | None:
    """Return the prepared GPU and `components.all_components` for it, or None."""
    work = _work()
    if work is None or not (work / MODEL).exists():
        return None
    model = json.loads(lzma.decompress((work / MODEL).read_bytes()))
    return model["gpu"], model["components"]


def network_of(draw: Callable[[], PromptIR]) -> PromptIR:
    """Return the network in the work folder; draw it, and write it there, if there is none."""
    work = _work()
    if work is None:
        return draw()
    if not (work / _TICKET).exists():
        write_whole(work / _TICKET, pack(draw(), {}))
    return unpack((work / _TICKET).read_bytes())[0]


def network_digest(network: PromptIR) -> str:
    """Return a digest of all weights, on whatever device they are."""
    result = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        result.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()


def packed_network(network: PromptIR, dtype: torch.dtype) -> PackedNetwork:
    """Return a packed network from the work folder; pack it, and write it there, if there is none."""
    work = _work()
    if work is None:
        return PackedNetwork(network, dtype)
    path = _packed_path(work, network_digest(network), dtype)
    try:
        packed: PackedNetwork = torch.load(path, weights_only=False)  # this very program wrote it
    except Exception as error:  # of another version of PyTorch, which may raise anything
        if path.exists():
            print(f"{path.name} cannot be read ({type(error).__name__}: {error}); packing again")
        packed = PackedNetwork(network, dtype)
    else:
        if packed.dense:
            return packed
        packed.dense = dense_ops(network, dtype)  # which do not travel
    new = path.with_suffix(f".{os.getpid()}")
    torch.save(packed, new)
    new.replace(path)
    return packed


def _packed_path(work: Path, network: str, dtype: torch.dtype) -> Path:
    return work / f"packed-{network[:16]}-{str(dtype).removeprefix('torch.')}.pt"
