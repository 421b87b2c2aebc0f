"""Run ``mirl-sparse demo``: restore degraded photographs and a clean one, and time dense beside sparse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mirl_sparse.architectures.promptir import PromptIR
    from mirl_training.evaluation import Pixels
    from mirl_training.evaluation.demo_photos import DemoPhoto

_COLUMNS = (
    *("photo", "ticket", "pixels", "PSNR before", "after"),
    *("dense, as installed", "dense, best", "sparse", "speed-up", "difference"),
)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.")] = Path("demo"),
    ticket: Annotated[
        str | None,
        typer.Option(
            help="A ticket file or a shipped one, for all photos; by default haze for the hazy one."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(help="Timed runs of each network, interleaved.", min=1)] = 3,
) -> None:
    """Restore degraded photos and a clean one, time dense beside sparse, write a side-by-side picture."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from mirl_sparse.photos import write_image
    from mirl_training.evaluation import sheet
    from mirl_training.evaluation.demo_photos import demo_photos

    photos = [replace(photo, ticket=ticket or photo.ticket) for photo in demo_photos()]
    networks = {name: _load(name) for name in dict.fromkeys(photo.ticket for photo in photos)}
    table, rows = Table(*_COLUMNS, box=None), []
    for photo in photos:
        cells, images, captions = _restore(networks[photo.ticket], photo, output, runs)
        table.add_row(*cells)
        rows.append((images, captions))
    write_image(output / "side_by_side.png", sheet(rows))
    Console(width=170).print(table)
    for name, network in networks.items():
        print(_kept(name, network))
    print(
        f"medians of {runs} interleaved runs, {torch.get_num_threads()} threads\n"
        "dense, as installed: PyTorch with the system's allocator; dense, best: tuned allocator, eager or"
        " channels_last (mirl-sparse bench adds torch.compile and other engines)\n"
        "difference: the largest between the sparse and the dense result, in 8-bit levels\n"
        f"{output / 'side_by_side.png'}"
    )


def _load(ticket: str) -> PromptIR:
    from mirl_sparse.tickets import find_ticket, load_network

    return load_network(find_ticket(ticket))


def _kept(ticket: str, network: PromptIR) -> str:
    from mirl_sparse.tickets import describe

    kept = describe(network).statistics
    weights, macs = kept["density"], kept["mac_density"]
    return f"ticket {ticket!r}: {weights:.1%} of the weights, {macs:.1%} of the multiply-adds"


def _restore(
    network: PromptIR, photo: DemoPhoto, output: Path, runs: int
) -> tuple[list[str], list[Pixels], list[str]]:
    """Restore, time and write a photo; return its row of the table, its pictures and their captions."""
    import numpy as np

    from mirl_sparse.photos import write_image
    from mirl_sparse.runtime import SparseRestorer

    restored = SparseRestorer(network).restore(photo.degraded)
    dense = SparseRestorer(network, "reference").restore(photo.degraded)
    difference = int(np.abs(restored.astype(int) - dense).max())
    write_image(output / f"{photo.name}.png", photo.degraded)
    write_image(output / f"{photo.name}_restored.png", restored)
    before, after = (_psnr(photo.clean, image) for image in (photo.degraded, restored))
    height, width = photo.clean.shape[:2]
    times, caption = _time(network, photo, runs)
    cells = [photo.description, photo.ticket, f"{width}x{height}", before, after, *times]
    captions = [f"{photo.description}: {before}", f"restored: {after}{caption}", "original"]
    return [*cells, f"{difference} of 255"], [photo.degraded, restored, photo.clean], captions


def _psnr(clean: Pixels, image: Pixels) -> str:
    from skimage.metrics import peak_signal_noise_ratio

    if (clean == image).all():
        return "the same"
    return f"{peak_signal_noise_ratio(clean, image):.2f} dB"


def _time(network: PromptIR, photo: DemoPhoto, runs: int) -> tuple[list[str], str]:
    """Return the cells of the table that hold times, and what the picture says of them."""
    import torch

    from mirl_kernels.core import cpu
    from mirl_sparse.performance.bench import SPARSE, bench
    from mirl_sparse.performance.peers import EAGER, STOCK

    if not photo.is_timed or not cpu.available():
        return ["-"] * 4, ""
    image = torch.from_numpy(photo.degraded.transpose(2, 0, 1).copy()).float().div(255)[None]
    result = bench(network, image, runs, EAGER)
    best, sparse = (result.rows[name].median for name in (result.strongest_dense, SPARSE))
    stock = result.rows.get(STOCK)
    cells = [
        f"{stock.median:.3f} s" if stock else "-",
        f"{best:.3f} s",
        f"{sparse:.3f} s",
        f"{best / sparse:.1f}x",
    ]
    return cells, f"; dense {best:.2f} s, sparse {sparse:.2f} s"
