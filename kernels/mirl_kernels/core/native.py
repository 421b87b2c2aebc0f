"""Load the shared library of the C++ kernels, and run compiled tickets on it, without PyTorch.

`Program` and `Plan` are the functions of ``cpu/src/mirl.h`` as objects.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_char_p, c_double, c_int, c_int64, c_void_p
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from mirl_kernels.errors import BackendError

LIBRARY = "libmirl_cpu.so"

_PROGRESS = CFUNCTYPE(c_int, c_void_p, c_double)


class Options(Structure):
    """Say how to run (``MirlOptions`` of mirl.h).

    Attributes:
        threads: Threads to use; 0 for what OMP_NUM_THREADS says, or as many as there are processors.
        instruction_set: "avx512", "avx2" or "portable" as bytes; None for the best one.
        max_bytes: Bytes of memory that `Program.restore` may take; 0 for 1 GiB.
        progress: C function that is called with the share of the work that is done; None for none.
        context: Not used.
    """

    _fields_ = [
        ("threads", c_int64),
        ("instruction_set", c_char_p),
        ("max_bytes", c_int64),
        ("progress", _PROGRESS),
        ("context", c_void_p),
    ]


class Photo(Structure):
    """Describe a photo in memory (``MirlPhoto`` of mirl.h).

    Attributes:
        pixels: Address of the first row.
        height: Rows.
        width: Pixels of a row.
        channels: 3, or 4.
        bits: Of a value: 8 or 16.
        stride: Bytes from one row to the next.
    """

    _fields_ = [
        ("pixels", c_void_p),
        ("height", c_int64),
        ("width", c_int64),
        ("channels", c_int64),
        ("bits", c_int64),
        ("stride", c_int64),
    ]


class _Status(IntEnum):
    OK, BAD_PROGRAM, BAD_ARGUMENT, OUT_OF_MEMORY = range(4)


@cache
def load_library() -> ctypes.CDLL:
    """Return the shared library of the kernels.

    Raises:
        BackendError: If the library was not built or cannot be loaded, or if the environment variable
            ``MIRL_CPU_ISA`` asks for an instruction set that this processor does not have.
    """
    folders = sys.modules[__package__ or ""].__path__  # an editable install has two
    path = next((p for folder in folders if (p := Path(folder, "cpu", LIBRARY)).exists()), None)
    if path is None:
        raise BackendError(
            "the C++ kernels were not built when mirl-sparse was installed; install a C++17 compiler (g++ or"
            ' clang++) and install mirl-sparse again, or use backend="reference"'
        )
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(f"{path} cannot be loaded ({error}); install mirl-sparse again") from None
    loaded.mirl_isa.restype = c_char_p
    if loaded.mirl_isa() is None:
        raise BackendError(
            f"MIRL_CPU_ISA is {os.environ.get('MIRL_CPU_ISA')!r}, which this processor cannot run;"
            " expected avx512, avx2 or portable"
        )
    return loaded


def available() -> bool:
    """Return whether the C++ kernels can run here."""
    try:
        load_library()
    except BackendError:
        return False
    return True


@cache
def _runtime() -> ctypes.CDLL:
    """Return the library with the types of the runtime's functions."""
    library = load_library()
    if not hasattr(library, "mirl_load"):
        raise BackendError("the C++ kernels are of another version; install mirl-sparse again")
    library.mirl_message.restype = c_char_p
    library.mirl_load_in_place.argtypes = [c_void_p, ctypes.c_size_t, POINTER(c_void_p)]
    library.mirl_free.argtypes = library.mirl_multiple.argtypes = [c_void_p]
    library.mirl_free_plan.argtypes = [c_void_p]
    library.mirl_multiple.restype = library.mirl_required_bytes.restype = c_int64
    library.mirl_required_bytes.argtypes = [c_void_p, c_int64, c_int64, c_int64]
    library.mirl_plan.argtypes = [c_void_p, c_int64, c_int64, c_int64, POINTER(c_void_p)]
    library.mirl_run.argtypes = [c_void_p, c_void_p, c_void_p, POINTER(Options)]
    library.mirl_tile_size.argtypes = [c_void_p, *[c_int64] * 3, POINTER(c_int64), POINTER(c_int64)]
    library.mirl_restore.argtypes = [c_void_p, POINTER(Photo), c_void_p, c_double, POINTER(Options)]
    return library


def _check(status: int) -> None:
    """Raise the error that a status stands for."""
    if status == _Status.OK:
        return
    message = _runtime().mirl_message().decode(errors="replace")
    errors: dict[int, type[Exception]] = {
        _Status.BAD_PROGRAM: ValueError,
        _Status.BAD_ARGUMENT: ValueError,
        _Status.OUT_OF_MEMORY: MemoryError,
    }
    raise errors[status](message)


class _Watch:
    """Call a function as work goes on. An exception that it raises stops the work, and is raised again.

    Ctrl+C stops the work as well. It is noted, for what it raised where C calls Python would be lost.
    """

    def __init__(self, progress: Callable[[float], object]) -> None:
        self._progress = progress
        self._error: BaseException | None = None
        self._function = _PROGRESS(self._call)

    def _call(self, _: Any, done: float) -> int:
        try:
            self._progress(done)
        except BaseException as error:
            self._error = error
        return self._error is not None

    def _note(self, *_: object) -> None:
        self._error = KeyboardInterrupt()

    def run(self, work: Callable[[Any], int]) -> None:
        """Do work that takes the C function; raise what stopped it."""
        in_main = threading.current_thread() is threading.main_thread()
        notes = in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if notes:
            signal.signal(signal.SIGINT, self._note)
        try:
            status = work(self._function)
        finally:
            if notes:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._error is not None:
            raise self._error
        _check(status)


def ignore(done: float) -> None:
    """Do nothing; as a progress function it lets Ctrl+C stop the work."""


class Program:
    """Hold a compiled ticket; threads may share it.

    Args:
        address: Where its bytes begin: a multiple of 64. They must not change.
        size: How many there are.
        owner: What keeps them in memory.

    Attributes:
        multiple: Number that the sides of images are multiples of.

    Raises:
        ValueError: If the program is damaged, or of another version.
    """

    def __init__(self, address: int, size: int, owner: object) -> None:
        self._handle, self._owner = c_void_p(), owner
        _check(_runtime().mirl_load_in_place(address, size, byref(self._handle)))
        self.multiple: int = _runtime().mirl_multiple(self._handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _runtime().mirl_free(self._handle)

    def required_bytes(self, batch: int, height: int, width: int) -> int:
        """Return how many bytes of memory a plan for (batch, 3, height, width) takes.

        Raises:
            ValueError: If a side is no multiple of `multiple`, or less than 1.
        """
        needed: int = _runtime().mirl_required_bytes(self._handle, batch, height, width)
        if needed < 0:
            _check(_Status.BAD_ARGUMENT)
        return needed

    def tile_size(self, height: int, width: int, max_bytes: int) -> tuple[int, int]:
        """Return height and width of the tiles in which `restore` restores a photo.

        Args:
            height: The photo's height; the tile's is at least that if the photo needs no tiles.
            width: The photo's width, likewise.
            max_bytes: Bytes of memory that may be used.

        Raises:
            MemoryError: If even small tiles need more.
        """
        tile = c_int64(), c_int64()
        _check(_runtime().mirl_tile_size(self._handle, height, width, max_bytes, *map(byref, tile)))
        return tile[0].value, tile[1].value

    def restore(
        self,
        photo: Photo,
        result: int,
        strength: float = 1.0,
        threads: int = 0,
        max_bytes: int = 0,
        progress: Callable[[float], object] = ignore,
    ) -> None:
        """Restore a photo of any size, in tiles where it does not fit into ``max_bytes``.

        Args:
            photo: The photo.
            result: Address of memory of the photo's layout; it may be the photo's.
            strength: Share of the restored photo in the result, 0 to 1.
            threads: As in `Options`.
            max_bytes: As in `Options`.
            progress: As for `Plan.run`.

        Raises:
            ValueError: If an argument is wrong.
            MemoryError: If there is too little memory.
        """

        def work(function: Any) -> int:
            options = Options(threads, None, max_bytes, function)
            arguments = self._handle, byref(photo), result, strength, byref(options)
            return int(_runtime().mirl_restore(*arguments))

        _Watch(progress).run(work)


class Plan:
    """Hold the memory for images of one size; one thread at a time may use it.

    Args:
        program: The program.
        batch: Number of images.
        height: Their height, a multiple of ``program.multiple``.
        width: Their width, likewise.

    Attributes:
        bytes: Size of the memory.

    Raises:
        ValueError: If the size is none that the program takes.
        MemoryError: If there is too little memory.
    """

    def __init__(self, program: Program, batch: int, height: int, width: int) -> None:
        self._handle, self._program = c_void_p(), program
        size = (batch, height, width)
        _check(_runtime().mirl_plan(program._handle, *size, byref(self._handle)))
        self.bytes = program.required_bytes(*size)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            _runtime().mirl_free_plan(self._handle)

    def run(
        self, image: int, result: int, threads: int, progress: Callable[[float], object] | None = None
    ) -> None:
        """Restore an image.

        Args:
            image: Address of (batch, 3, height, width) float32, contiguous.
            result: Address of memory for the result, of the same shape.
            threads: Threads to use.
            progress: Called after each step with the share of the work that is done. What it raises stops
                the work.

        Raises:
            MemoryError: If a kernel runs out of memory.
        """
        if progress is None:
            _check(_runtime().mirl_run(self._handle, image, result, byref(Options(threads))))
            return

        def work(function: Any) -> int:
            options = Options(threads, None, 0, function)
            return int(_runtime().mirl_run(self._handle, image, result, byref(options)))

        _Watch(progress).run(work)
