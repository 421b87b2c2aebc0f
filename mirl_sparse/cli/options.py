"""Define the options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from mirl_sparse.choices import BackendName

Ticket = Annotated[
    str, typer.Option(help="A ticket file or the name of a shipped one; haze is for hazy photos.")
]
Backend = Annotated[str, typer.Option(help=f"One of {BackendName.names()}; triton is for a GPU.")]
Strength = Annotated[
    float, typer.Option(help="0 leaves a photo as it is, 1 restores it fully.", min=0, max=1)
]
Metadata = Annotated[bool, typer.Option(help="Keep EXIF, XMP, IPTC, resolution and text, or drop them.")]


def named_after(ticket: str, suffix: str) -> Path:
    """Return the name of a file, in the working folder, that is made of a ticket.

    Args:
        ticket: What names the ticket: a file, a folder, a shipped one, or one of the Hub.
        suffix: What the name ends with.

    Examples:
        >>> named_after("user/name@v1", ".onnx").name
        'name.onnx'
    """
    path = Path(ticket).resolve() if os.path.exists(ticket) else Path(ticket.partition("@")[0])
    return Path(path.name.removesuffix(".safetensors") + suffix)
