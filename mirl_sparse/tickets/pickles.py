"""Load files of torch.save without running anything that they name.

PyTorch's restricted unpickler refuses whatever is not a tensor or a plain container. Objects of other classes
(a Namespace of arguments, a numpy scalar) do not matter to the weights beside them. They become stand-ins.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch

from mirl_sparse.errors import FileContentError

_TORCHSCRIPT = ("constants.pkl", "code/")
_MOST_CLASSES = 64


class PickleError(FileContentError):
    """Report a file that torch.load does not load; the message is one line for the user."""


class StandIn:
    """Stand for an object of a class that is not loaded. It takes and keeps nothing.

    Attributes:
        stands_for: The name of that class.
    """

    stands_for = ""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        """Take no item."""

    def extend(self, _: object) -> None:
        """Take no items."""


def load_pickle(path: Path, head: bytes) -> tuple[object, tuple[str, ...]]:
    """Return what a file holds, and the names of the classes whose objects are left out.

    Args:
        path: A file of torch.save.
        head: Its first bytes.

    Raises:
        PickleError: It is another kind of file, is damaged, or holds what is not safe to load.
    """
    try:
        _check_archive(path)
        # Not memory-mapped: a file that a training run rewrites meanwhile would end the process by a signal.
        try:
            return torch.load(path, map_location="cpu", weights_only=True), ()
        except pickle.UnpicklingError as error:
            return _load_with_stand_ins(path, error)
    except PickleError:
        raise
    except Exception as error:  # a damaged pickle raises anything, from struct.error to AssertionError
        raise PickleError(_why_refused(head, error)) from error


def _load_with_stand_ins(path: Path, error: pickle.UnpicklingError) -> tuple[object, tuple[str, ...]]:
    """Load a file with stand-ins for the classes that PyTorch refuses: of a zip archive it names all at once.

    Args:
        path: The file.
        error: What PyTorch said of it.

    Returns:
        What the file holds, and the names of the classes.
    """
    tell = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)  # PyTorch 2.6
    names = sorted(tell(path)) if tell and is_zipfile(path) else _refused(error)
    while names and len(names) <= _MOST_CLASSES:
        # A class of its own for each name: PyTorch tells them apart.
        stand_ins: list[Any] = [(type("Named", (StandIn,), {"stands_for": name}), name) for name in names]
        try:
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(path, map_location="cpu", weights_only=True), tuple(names)
        except pickle.UnpicklingError as another:
            if not (more := [name for name in _refused(another) if name not in names]):
                raise PickleError(code_refused(names[0])) from another
            names += more
        except Exception as failure:  # what the file does with its objects, stand-ins cannot
            raise PickleError(code_refused(names[0])) from failure
    raise error


def _refused(error: Exception) -> list[str]:
    """Return the class that PyTorch's restricted unpickler refuses, if it says so."""
    return re.findall(r"GLOBAL (\S+)", str(error))[:1]


def _check_archive(path: Path) -> None:
    if not is_zipfile(path):
        return
    records = ZipFile(path).infolist()
    inner = [record.filename.partition("/")[2] for record in records]
    if any(name.startswith(_TORCHSCRIPT) for name in inner):
        raise PickleError(
            "a TorchScript archive, which holds code; expected weights by name, so save"
            " torch.jit.load(FILE).state_dict() where you trust the file"
        )
    if any(record.compress_type != ZIP_STORED for record in records):
        raise PickleError(
            "its records are compressed, which none of PyTorch's are; expected a file of torch.save"
        )


def _why_refused(head: bytes, error: Exception) -> str:
    """Return what is wrong with a file, by its first bytes and by what torch.load says of it."""
    archive = head.startswith(b"PK\x03\x04")
    if isinstance(error, pickle.UnpicklingError) and (archive or head.startswith(b"\x80")):
        return code_refused("".join(_refused(error)))
    if archive:
        return (
            "a zip archive but no whole PyTorch checkpoint (truncated, damaged or another kind of file);"
            " expected a state dict, so download or save it again"
        )
    return (
        "neither a PyTorch checkpoint nor a safetensors file, or damaged;"
        " expected a .ckpt, .pt, .pth or .safetensors"
    )


def code_refused(name: str) -> str:
    """Return what to say of a file whose network would have to be built by running code that it names."""
    what = f"pickled code ({name})" if name else "pickled Python objects (or is damaged)"
    return (
        f"holds {what}, which is unsafe: to load it could run anything; expected tensors only, so save a"
        " plain state dict, torch.save(network.state_dict(), 'weights.pt'), where you trust the file"
    )
