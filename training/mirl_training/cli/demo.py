"""``mirl-sparse demo``: three photographs degraded, restored, and timed dense beside sparse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mirl_sparse.defaults import TICKET


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures.")] = Path("demo"),
    ticket: Annotated[str, typer.Option(help="A ticket file or the name of a shipped one.")] = TICKET,
    runs: Annotated[int, typer.Option(help="Timed runs of each network, interleaved.", min=1)] = 3,
) -> None:
    """Restore a noisy, a rainy and a hazy photo, time dense beside sparse, and write a side-by-side picture."""
    import numpy as np
    import torch
    from rich.console import Console
    from rich.table import Table
    from skimage.metrics import peak_signal_noise_ratio

    from mirl_kernels.core import cpu
    from mirl_sparse.performance.bench import bench
    from mirl_sparse.performance.peers import EAGER
    from mirl_sparse.photos.images import write_image
    from mirl_sparse.runtime.restorer import SparseRestorer
    from mirl_sparse.tickets.description import describe
    from mirl_sparse.tickets.file import find
    from mirl_sparse.tickets.load import load
    from mirl_training.evaluation.scenes import scenes
    from mirl_training.evaluation.sheet import sheet

    network = load(find(ticket))
    statistics = describe(network).statistics
    restorer = SparseRestorer(network)
    dense = SparseRestorer(network, "reference")
    table = Table("photo", "pixels", "PSNR before", "after", "dense, as installed", "dense, best", "sparse",
                  "speed-up", "difference", box=None)  # fmt: skip
    rows = []
    for scene in scenes():
        restored = restorer.restore(scene.degraded)
        difference = int(np.abs(restored.astype(int) - dense.restore(scene.degraded)).max())
        write_image(output / f"{scene.name}.png", scene.degraded)
        write_image(output / f"{scene.name}_restored.png", restored)
        before, after = (peak_signal_noise_ratio(scene.clean, image) for image in (scene.degraded, restored))
        height, width = scene.clean.shape[:2]
        times, spent = ["-"] * 4, ""
        if cpu.available():
            image = torch.from_numpy(scene.degraded.transpose(2, 0, 1).copy()).float().div(255)[None]
            result = bench(network, image, runs, EAGER)
            times, spent = _times(result)
        table.add_row(scene.what, f"{width}x{height}", f"{before:.2f} dB", f"{after:.2f} dB", *times,
                      f"{difference} of 255")  # fmt: skip
        captions = [f"{scene.what}: {before:.1f} dB", f"restored: {after:.1f} dB{spent}", "original"]
        rows.append(([scene.degraded, restored, scene.clean], captions))
    write_image(output / "side_by_side.png", sheet(rows))
    Console(width=160).print(table)
    print(
        f"ticket {ticket!r}: {statistics['density']:.1%} of the weights, {statistics['mac_density']:.1%} of the"
        f" multiply-adds; medians of {runs} interleaved runs, {torch.get_num_threads()} threads\n"
        "dense, as installed: PyTorch with the system's allocator; dense, best: tuned allocator, eager or channels_last"
        " (mirl-sparse bench adds torch.compile and other engines)\n"
        f"difference: the largest between the sparse and the dense result, in 8-bit levels\n{output / 'side_by_side.png'}"
    )


def _times(result: dict[str, Any]) -> tuple[list[str], str]:
    """The cells of the table, and what the picture says."""
    from mirl_sparse.performance.bench import SPARSE
    from mirl_sparse.performance.peers import STOCK

    rows = result["rows"]
    best, sparse = (rows[name]["median"] for name in (result["strongest_dense"], SPARSE))
    stock = rows.get(STOCK)
    cells = [
        f"{stock['median']:.3f} s" if stock else "-",
        f"{best:.3f} s",
        f"{sparse:.3f} s",
        f"{best / sparse:.1f}x",
    ]
    return cells, f"; dense {best:.2f} s, sparse {sparse:.2f} s"
