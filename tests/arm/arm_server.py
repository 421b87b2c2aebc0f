"""Run the tests' kernels as ARM code: a plugin of pytest, ``-p arm_server``, which ``make test-arm`` uses.

PyTorch and the tests stay what they are. Only the functions of the kernels' shared library are those of one
that is built for ARM. They run in a process of their own, under an emulator (server.cpp).
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import threading
from functools import cache
from pathlib import Path

import pytest

EMULATOR = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")  # where Debian has ARM's C library
BUILD = Path(__file__).parents[2] / "build" / "arm"
CALLS = "calls of ARM code"
ARGUMENTS = 8  # that a function takes at most, as in server.cpp


class ArmServer:
    """Call functions in the server's process, which reads and writes the memory of this one.

    Attributes:
        calls: How many calls there were.
    """

    def __init__(self) -> None:
        self.calls, self._lock = 0, threading.Lock()
        self._addresses: dict[str, int] = {}
        memory = os.open("/proc/self/mem", os.O_RDWR)
        command = [*EMULATOR, BUILD / "server", BUILD / "libmirl_cpu.so", str(memory)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=[memory])
        os.close(memory)

    def call(self, function: int, *arguments: int) -> int:
        """Return what a function of the server returns.

        Args:
            function: Its address there; 0 for the function that finds others by name.
            *arguments: Integers and addresses.

        Raises:
            RuntimeError: If the server has ended, as it does when a kernel uses memory that it must not use.
        """
        padding = [0] * (ARGUMENTS - len(arguments))
        with self._lock:
            self.calls += 1
            try:
                self._process.stdin.write(struct.pack("=9q", function, *arguments, *padding))
                self._process.stdin.flush()
                return struct.unpack("=q", self._process.stdout.read(8))[0]
            except (BrokenPipeError, struct.error):
                _server_of.cache_clear()  # the next call starts another
                status = self._process.wait()
        raise RuntimeError(f"the ARM server ended with {status}; stderr says why")

    def find(self, name: str) -> int:
        """Return the address of a function of the library, or of one that it uses; 0 for none."""
        if name not in self._addresses:
            text = ctypes.create_string_buffer(name.encode())
            self._addresses[name] = self.call(0, ctypes.addressof(text))
        return self._addresses[name]


@cache
def _server_of(process: int) -> ArmServer:
    return ArmServer()


def server() -> ArmServer:
    """Return this process's server. A process that was forked has other memory and gets another server."""
    return _server_of(os.getpid())


class ArmFunction:
    """A function of the library, called as one of `ctypes.CDLL`."""

    restype = ctypes.c_int

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments):
        # The value of an integer, the address of what `byref` was called with.
        plain = [ctypes.addressof(a._obj) if hasattr(a, "_obj") else a.value for a in arguments]
        result = server().call(server().find(self._name), *plain)
        return _text_at(result) if self.restype is ctypes.c_char_p else self.restype(result).value


def _text_at(address: int) -> bytes | None:
    """Return a text of the server's memory."""
    if not address:
        return None
    copy = ctypes.create_string_buffer(256)
    server().call(server().find("strcpy"), ctypes.addressof(copy), address)
    return copy.value


class ArmLibrary:
    """The library, in place of what `load_library` returns."""

    def __init__(self) -> None:
        self.mirl_isa.restype = ctypes.c_char_p

    def __getattr__(self, name: str) -> ArmFunction:
        if not server().find(name):
            raise AttributeError(name)
        function = ArmFunction(name)
        setattr(self, name, function)
        return function


def pytest_configure() -> None:
    """Replace the library. The product is imported only now, when tests/conftest.py has set threads."""
    from mirl_kernels.core import cpu
    from mirl_kernels.core.cpu import library

    library.load_library = cpu.load_library = cache(ArmLibrary)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = server().calls
    try:
        return (yield)
    finally:
        item.user_properties.append((CALLS, server().calls - before))


def pytest_terminal_summary(terminalreporter) -> None:
    """Say how much has run on ARM, lest the tests pass without it."""
    passed = terminalreporter.getreports("passed")
    counts = [count for report in passed for name, count in report.user_properties if name == CALLS]
    terminalreporter.line(f"{sum(counts)} {CALLS} in {sum(map(bool, counts))} of {len(counts)} passed tests")
