"""Build wheels with the kernels inside, for machines without a compiler: ``make wheels``.

    python kernels/wheels.py [TARGET ...] [-o dist]

Clang cross-compiles (the package ``ziglang`` has it, with the headers and libraries of old systems). A wheel
holds the kernels for every instruction set of its processor, and nothing of CPython's interface, so that one
wheel serves every Python.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import ziglang

ROOT = Path(__file__).parents[1]
LIBRARY = "mirl_kernels/core/cpu/libmirl_cpu.so"


class Target(NamedTuple):
    """Describe where wheels run.

    Attributes:
        triple: The target as Zig names it.
        tag: The platform tag of the wheel.
        settings: What CMake is told of it.
    """

    triple: str
    tag: str
    settings: str


_LINUX = "-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SHARED_LINKER_FLAGS=-Wl,-s -DCMAKE_SYSTEM_PROCESSOR="
_MACOS = "-DCMAKE_SYSTEM_NAME=Darwin -DCMAKE_INSTALL_NAME_TOOL=true -DCMAKE_SYSTEM_PROCESSOR="
# glibc 2.17 is that of 2012: every Linux in use has it or a later one. The wheels for macOS and Windows were
# built, and never run.
TARGETS = {
    "x86_64": Target(
        "x86_64-linux-gnu.2.17", "manylinux2014_x86_64.manylinux_2_17_x86_64", f"{_LINUX}x86_64"
    ),
    "aarch64": Target(
        "aarch64-linux-gnu.2.17", "manylinux2014_aarch64.manylinux_2_17_aarch64", f"{_LINUX}aarch64"
    ),
    "macos": Target("aarch64-macos.11.0", "macosx_11_0_arm64", f"{_MACOS}arm64"),
    "windows": Target(
        "x86_64-windows-gnu", "win_amd64", "-DCMAKE_SYSTEM_NAME=Windows -DCMAKE_SYSTEM_PROCESSOR=AMD64"
    ),
}


def compiler(folder: Path, triple: str, language: str) -> Path:
    """Write a command that compiles for a target, since CMake wants one without arguments."""
    command = folder / language
    zig = Path(*ziglang.__path__, "zig")
    command.write_text(f'#!/bin/sh\nexec "{zig}" {language} -target {triple} "$@"\n')
    command.chmod(0o755)
    return command


def build(name: str, output: Path) -> Path:
    """Build the wheel of a target into a folder.

    Args:
        name: A key of `TARGETS`.
        output: The folder; it is made if need be.

    Returns:
        The wheel.

    Raises:
        RuntimeError: The kernels did not compile, so that the wheel would be without them.
        subprocess.CalledProcessError: The build failed otherwise.
    """
    target = TARGETS[name]
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = {
            **os.environ,
            "CC": str(compiler(folder, target.triple, "cc")),
            "CXX": str(compiler(folder, target.triple, "c++")),
            "CMAKE_ARGS": target.settings,
        }
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", temporary]
        settings = ["-C", f"build-dir={folder / 'build'}", str(ROOT)]
        subprocess.run([*pip, *settings], env=environment, check=True)
        (wheel,) = folder.glob("*.whl")
        if LIBRARY not in zipfile.ZipFile(wheel).namelist():
            raise RuntimeError(f"the kernels were not compiled for {name}: the messages above say why")
        retag = [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", target.tag, str(wheel)]
        subprocess.run(retag, check=True, stdout=subprocess.DEVNULL)
        (tagged,) = folder.glob("*.whl")
        return tagged.replace(output / tagged.name)


def main() -> None:
    """Build the wheels that the command line names."""
    parser = argparse.ArgumentParser(description="Build wheels with the kernels inside.")
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; expected {', '.join(TARGETS)}")
    for name in options.targets:
        wheel = build(name, options.output)
        print(f"{wheel}  {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
