"""Define the options that several commands share."""

from __future__ import annotations

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
