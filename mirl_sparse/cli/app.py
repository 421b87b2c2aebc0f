"""The ``mirl-sparse`` command: its commands, and how errors end it.

Each command has a file of its own, whose heavy imports are inside the function: help needs neither PyTorch nor the kernels.
"""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import entry_points

import typer

from mirl_kernels.errors import BackendError
from mirl_sparse.cli.bench import bench
from mirl_sparse.cli.convert import convert
from mirl_sparse.cli.doctor import doctor
from mirl_sparse.cli.inspect import inspect
from mirl_sparse.cli.restore import restore
from mirl_sparse.cli.tune import tune
from mirl_sparse.errors import UserError


def build() -> typer.Typer:
    """Return the application: the product's commands, and those of installed packages (`mirl_training`)."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    for command in (restore, convert, inspect, bench, tune, doctor):
        app.command()(command)
    for entry in entry_points(group="mirl_sparse.commands"):
        app.command(entry.name)(entry.load())
    return app


def main() -> None:
    """Run the command; an error that the user can mend is one line and exit status 2."""
    warnings.formatwarning = lambda message, *_, **__: f"mirl-sparse: {message}\n"
    try:
        build()()
    except (UserError, BackendError) as error:
        print(f"mirl-sparse: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written to
        what = f"{error.filename}: " if error.filename else ""
        print(f"mirl-sparse: {what}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # of torch.cuda
        if not memory and "can't allocate memory" not in str(error):  # as PyTorch says it on processors
            raise
        reason = " ".join(str(error).split())
        print(
            f"mirl-sparse: not enough memory ({reason}); give less at once, such as a smaller image",
            file=sys.stderr,
        )
        sys.exit(2)
