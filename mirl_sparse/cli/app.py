"""Put the commands of ``mirl-sparse`` together, and print errors that users can mend in one line.

Each command has a file of its own, whose heavy imports are inside the function: help needs neither PyTorch
nor the kernels.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from importlib.metadata import entry_points
from typing import NoReturn

import typer

from mirl_kernels.errors import BackendError
from mirl_sparse.cli.batch import batch
from mirl_sparse.cli.batch_status import batch_status
from mirl_sparse.cli.bench import bench
from mirl_sparse.cli.compile import compile_command
from mirl_sparse.cli.convert import convert
from mirl_sparse.cli.doctor import doctor
from mirl_sparse.cli.export import export
from mirl_sparse.cli.inspect import inspect
from mirl_sparse.cli.page import page
from mirl_sparse.cli.printing import printable
from mirl_sparse.cli.restore import restore
from mirl_sparse.cli.serve import serve
from mirl_sparse.cli.tune import tune
from mirl_sparse.errors import UserError

# Packages that some commands need, and the extra that brings them.
_EXTRAS = {
    "torch": "torch",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "python_multipart": "serve",
    "prometheus_client": "serve",
    "pydantic": "training",
    "yaml": "training",
    "matplotlib": "training",
    "skimage": "demo",
    "scipy": "sparsify",
    "huggingface_hub": "hub",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "spandrel": "spandrel",
    "torchvision": "spandrel",
    "einops": "spandrel",
    "fsspec": "batch",
    "pyarrow": "batch",
    "ray": "ray",
}


def build() -> typer.Typer:
    """Return the application: the product's commands, and those of installed packages (`mirl_training`)."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    for command in (restore, batch, page, serve, convert, export, inspect, bench, tune, doctor):
        app.command()(command)
    app.command("batch-status")(batch_status)
    app.command("compile")(compile_command)
    for entry in entry_points(group="mirl_sparse.commands"):
        app.command(entry.name)(entry.load())
    return app


def main() -> None:
    """Run the command; an error that the user can mend is one line and exit status 2."""
    warnings.formatwarning = lambda message, *_, **__: f"mirl-sparse: {message}\n"
    _prepare_streams()
    try:
        build()()
    except (UserError, BackendError) as error:
        _end(str(error))
    except ModuleNotFoundError as error:
        if (package := (error.name or "").split(".")[0]) not in _EXTRAS:
            raise
        extra = _EXTRAS[package]
        _end(
            f"this command needs the package {package}:"
            f" run pip install '.[{extra}]' in the clone of mirl-sparse"
        )
    except OSError as error:  # a full disk, a folder that may not be written to
        file = f"{error.filename}: " if error.filename else ""
        _end(f"{file}{error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        reason = " ".join(str(error).split())
        _end(f"not enough memory ({reason}); give less at once, such as a smaller image")


def _prepare_streams() -> None:
    """Let any text be printed: escaped where the terminal's encoding lacks it, nowhere if closed."""
    if sys.stderr is None:  # print would choose standard output, which may take a photo
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _end(message: str) -> NoReturn:
    print(f"mirl-sparse: {printable(message)}", file=sys.stderr)
    sys.exit(2)


def _lacks_memory(error: Exception) -> bool:
    """Return whether Python, PyTorch on a GPU, or PyTorch on the processor says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(
        words in str(error).lower() for words in ("can't allocate memory", "out of memory", "alloc_failed")
    )
