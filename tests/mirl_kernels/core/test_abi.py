"""The structures of Python are those of abi.h, field by field, as the C++ compiler lays them out."""

import ctypes
import importlib
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import mirl_kernels
from mirl_kernels.core import cpu

HEADER = Path(cpu.__file__).with_name("src") / "abi.h"
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
pytestmark = pytest.mark.skipif(
    not (COMPILER and HEADER.exists()), reason="needs a C++ compiler and the sources of the kernels"
)


def structures() -> list[type[ctypes.Structure]]:
    """Return the structures of all modules of the kernels; those for Triton have none."""
    for module in pkgutil.walk_packages(mirl_kernels.__path__, "mirl_kernels."):
        if "triton" not in module.name and not module.name.endswith("libmirl_cpu"):
            importlib.import_module(module.name)
    return [s for s in ctypes.Structure.__subclasses__() if s.__module__.startswith("mirl_kernels.")]


def named(structure: type[ctypes.Structure]) -> str:
    return f"Mirl{structure.__name__.removesuffix('Args')}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Compile statements that include abi.h, and return what they print."""

    def run(statements: list[str]) -> str:
        folder = tmp_path_factory.mktemp("abi")
        source = folder / "layout.cpp"
        body = "\n".join(statements)
        source.write_text(
            '#include <cstddef>\n#include <cstdio>\n#include "abi.h"\n#include "mirl.h"\n'
            "#define SIZE(s, f) sizeof(((s*)nullptr)->f)\n"
            f"int main() {{\n{body}\n}}\n"
        )
        command = [COMPILER, "-std=c++17", f"-I{HEADER.parent}", str(source), "-o", str(folder / "layout")]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout

    return run


def test_every_field_has_the_offset_and_the_size_of_its_c_structure(run):
    statements, expected = [], []
    for structure in structures():
        name = named(structure)
        statements.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(structure)}")
        for field, *_ in structure._fields_:
            statements.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({name}, {field}), SIZE({name}, {field}));'
            )
            described = getattr(structure, field)
            expected.append(f"{name}.{field} {described.offset} {described.size}")
    assert run(statements).splitlines() == expected


def test_every_argument_of_a_kernel_has_a_structure():
    listed = re.findall(r"^\s*X\((\w+), *(Mirl\w+)\)", HEADER.read_text(), re.MULTILINE)
    assert listed
    assert {argument for _, argument in listed} <= {named(s) for s in structures()}


@pytest.mark.parametrize("empty", [0, 1], ids=["whole", "by pairs of rows"])
def test_a_packed_matrix_has_the_words_of_its_c_structure(run, empty, monkeypatch):
    """A matrix of one chunk with a bias, kept as entries and in another form beside them."""
    monkeypatch.setattr(cpu.packed_matrix, "kernel_rule", lambda name: int(name == "row_pairs_are_fast"))
    weight = torch.ones(3, 2)
    weight[:empty] = 0
    matrix = cpu.PackedMatrix(cpu.pack(weight, torch.ones(3), cpu.Forms.PAIRS))
    (chunk,) = matrix.chunks
    words = ", ".join(map(str, matrix.words.tolist()))
    assert (chunk.dense == 0) == (chunk.row_pairs != 0) == bool(empty)
    fields = ["first_row", "rows", "columns", "start", "entry", "bias", "dense", "row_pairs"]
    ours = [getattr(chunk, "bias_at" if field == "bias" else field) for field in fields]
    printed = run(
        [
            f"static const int32_t words[] = {{{words}}};",
            "const MirlMatrix& m = *reinterpret_cast<const MirlMatrix*>(words);",
            'printf("%d %d %d %d %d\\n", m.rows, m.columns, m.entries, m.chunks, m.taps);',
            *(f'printf("%d ", m.chunk(0).{field});' for field in fields),
            'printf("\\n%d\\n", MIRL_PANEL);',
        ]
    ).splitlines()
    assert printed[0] == f"3 2 {matrix.nnz} 1 0"
    assert printed[1].split() == [str(value) for value in ours]
    assert printed[2] == str(cpu.PANEL)
