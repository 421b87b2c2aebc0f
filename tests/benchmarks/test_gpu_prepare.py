"""Prepared kernels are found by a process elsewhere, and what is not for it is not used."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("triton interprets in this process", allow_module_level=True)

import triton

from benchmarks.gpu import prepare, prepared
from benchmarks.gpu.prepare import Plan, Refused
from benchmarks.gpu.prepared import Manifest
from benchmarks.gpu.runner import PREPARED, ROOT, TRITON_CACHE, WORK, code_digest
from benchmarks.gpu.setting import TICKET, TINY
from benchmarks.suite.tickets import network as draw
from mirl_sparse.runtime.triton_network import PackedNetwork
from mirl_sparse.tickets.file import pack

FEW = 2  # kernels that are compiled in earnest
GPU = "H200"


def in_process(source: Path, work: Path, *words: object, **environment: str):
    """Run the helper with the code of a source tree, and return what it prints."""
    paths = [source, source / "kernels", source / "tests/helpers"]
    added = {"PYTHONPATH": os.pathsep.join(map(str, paths)), WORK: str(work), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(source / "tests/helpers/gpu_keys.py"), *map(str, words)]
    work.mkdir(exist_ok=True)
    done = subprocess.run(
        command, cwd=work, env=os.environ | added | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A copy of the source tree at another place."""
    copy = tmp_path_factory.mktemp("elsewhere") / "deep" / "tree"
    leave_out = shutil.ignore_patterns("__pycache__", "*.so", "results", "built", "wasm", "shipped")
    for folder in ("kernels", "mirl_sparse", "benchmarks", "tests/helpers", "tests/triton"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=leave_out)
    return copy


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the ticket and the packed form of the tiny network, as `prepare` builds them."""
    folder = tmp_path_factory.mktemp("build")
    network = draw(*TICKET, TINY)
    packed = PackedNetwork(network, torch.float16)
    torch.save(packed, folder / "packed.pt")
    (folder / "ticket").write_bytes(pack(network, {}))
    (folder / "model.json").write_text(json.dumps({"gpu": GPU, "components": {}}))
    (folder / "network.txt").write_text(prepared.network_digest(network))
    return folder


@pytest.fixture(scope="module")
def plan():
    return Plan(code_digest(), False, GPU, triton.__version__, prepare.triton_key_of(None))


@pytest.fixture(scope="module")
def folder(tiny, plan, tmp_path_factory):
    """A prepared folder with a few kernels."""
    made = in_process(
        ROOT, tiny / "work", "compile", GPU, tiny / "packed.pt", FEW, TRITON_CACHE_DIR=str(tiny / "cache")
    )
    new = tmp_path_factory.mktemp("prepared")
    prepare._write(plan, (tiny / "network.txt").read_text(), [Path(name) for name in made], tiny, new)
    return new


def test_another_process_in_another_place_asks_for_the_same_keys(tiny, elsewhere, tmp_path):
    def keys(source, name):
        cache = {"TRITON_CACHE_DIR": str(tmp_path / name / "cache"), "HOME": str(tmp_path / name)}
        return in_process(source, tmp_path / name, "keys", GPU, tiny / "packed.pt", **cache)

    here = keys(ROOT, "here")
    assert len(set(here)) == len(here) > 20
    assert keys(elsewhere, "there") == here


def test_prepared_kernels_are_launched_without_a_compiler(folder, tiny, elsewhere, tmp_path):
    words = "launch", GPU, tiny / "packed.pt", FEW
    launched = in_process(elsewhere, tmp_path / "work", *words, **{PREPARED: str(folder)})
    assert launched["hits"] == [True] * FEW
    assert all(size > 1000 for size in launched["binaries"])
    assert all(launched["checked"])  # hazards are looked for in what the compiler left
    assert not (tmp_path / "work" / "kernels.new").exists()


def test_the_prepared_network_is_the_one_that_is_drawn(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(PREPARED, str(folder))
    monkeypatch.setenv(WORK, str(tmp_path))
    assert prepared.adopt(False, "NVIDIA H200").value == "yes"
    drawn = draw(*TICKET, TINY)
    network = prepared.network_of(lambda: pytest.fail("it is drawn again"))
    weights = drawn.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    packs = PackedNetwork(drawn, torch.float16)
    monkeypatch.setattr(prepared, "PackedNetwork", lambda *_: pytest.fail("it is packed again"))
    packed = prepared.packed_network(network, torch.float16)
    assert [step.name for step in packed.steps] == [step.name for step in packs.steps]
    assert set(packed.dense) == set(packs.dense)
    for one, other in zip(packed.steps, packs.steps, strict=True):
        mine, theirs = one.op.state_dict(), other.op.state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    ("change", "gpu", "why"),
    [
        ({"code": "other"}, "NVIDIA H200", "from other code"),
        ({"tiny": True}, "NVIDIA H200", "holds the tiny network"),
        ({}, "NVIDIA L4", "for an H200, this is an NVIDIA L4"),
        ({"triton": "2.0.0"}, "NVIDIA H200", "for Triton 2.0.0"),
        ({"triton_digest": "other"}, "NVIDIA H200", "another build of Triton"),
    ],
)
def test_what_is_prepared_for_something_else_is_not_used(folder, tmp_path, monkeypatch, change, gpu, why):
    other = tmp_path / "prepared"
    shutil.copytree(folder, other)
    replace(Manifest.read(folder), **change).write(other)
    monkeypatch.setenv(PREPARED, str(other))
    monkeypatch.setenv(WORK, str(tmp_path / "work"))
    figure = prepared.adopt(False, gpu)
    assert figure.value == "no"
    assert why in figure.facts["why"]
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", [prepared.MANIFEST, prepared.KERNELS, prepared.PACKED])
def test_a_damaged_folder_is_not_used(folder, tmp_path, monkeypatch, name):
    other, work = tmp_path / "prepared", tmp_path / "work"
    shutil.copytree(folder, other)
    (other / name).write_bytes((other / name).read_bytes()[:100])
    work.mkdir()
    monkeypatch.setenv(PREPARED, str(other))
    monkeypatch.setenv(WORK, str(work))
    figure = prepared.adopt(False, "NVIDIA H200")
    assert figure.value == "no"
    assert "cannot be read" in figure.facts["why"]
    assert not (work / TRITON_CACHE).exists()


def test_the_key_is_that_of_the_wheel_for_another_python(tmp_path):
    package = Path(triton.__file__).parent
    names = ["triton/__init__.py", "triton/runtime/cache.py"]

    def wheel(library: bytes, added: bytes = b"") -> Path:
        with ZipFile(tmp_path / "triton.whl", "w") as files:
            for name in names:
                files.writestr(name, (package.parent / name).read_bytes() + added)
            files.writestr("triton/_C/libtriton.so", library)
        return tmp_path / "triton.whl"

    here = prepare.triton_key_of(None)
    there = prepare.triton_key_of(wheel(b"for another Python"))
    assert there != here
    assert len(there) == len(here)
    assert there.split("-")[1:4] == here.split("-")[1:4]
    with pytest.raises(Refused, match=r"is not Triton .*triton/__init__\.py differs"):
        prepare.triton_key_of(wheel(b"", b"\n"))
    with pytest.raises(Refused, match="expected a wheel of Triton"):
        prepare.triton_key_of(tmp_path / "none.whl")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--triton", "2.0.0"], "the kernels are for 2.0.0: make bench-gpu-prepare TRITON=2.0.0"),
        (["--triton", triton.__version__, "--target", "MI300X"], "--target is MI300X; expected one of A100"),
    ],
)
def test_a_wrong_request_is_refused_in_a_line(words, says, tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu.prepare", "--out", str(tmp_path / "out"), *words]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_everything_that_is_launched_is_prepared(elsewhere, tmp_path):
    plan = Plan(code_digest(), True, GPU, triton.__version__, prepare.triton_key_of(None))
    out, build = tmp_path / "out", tmp_path / "build"
    prepare.prepare(plan, out, build, 2)
    assert sum(path.stat().st_size for path in out.iterdir()) < 5e6
    replace(Manifest.read(out), tiny=False).write(out)  # so that its kernels are taken
    count = Manifest.read(out).kernels
    words = "launch", GPU, build / "packed.pt", count
    launched = in_process(elsewhere, tmp_path / "work", *words, **{PREPARED: str(out)})
    assert launched["hits"] == [True] * count
