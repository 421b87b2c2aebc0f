"""``mirl-sparse eval``: score a ticket on test sets."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirl_sparse.defaults import TICKET

if TYPE_CHECKING:
    from mirl_training.evaluation.evaluate import ImageScore, Pixels, Sets, Triple


class _Worst:
    """The images of a test set that gained least, for its sheet."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._left: list[tuple[float, Triple, Pixels, ImageScore]] = []

    def add(self, triple: Triple, restored: Pixels, score: ImageScore) -> None:
        self._left.append((score.psnr - score.input_psnr, triple, restored, score))
        self._left = sorted(self._left, key=lambda row: row[0])[: self._rows]

    def sheet(self) -> Pixels:
        from mirl_training.evaluation.sheet import sheet

        return sheet(
            [
                (
                    [triple.degraded, restored, triple.clean],
                    [
                        f"{s.name}: {s.input_psnr:.2f} dB",
                        f"restored: {s.psnr:.2f} dB ({change:+.2f})",
                        "clean",
                    ],
                )
                for change, triple, restored, s in self._left
            ]
        )


class Suite(str, Enum):
    """Which test sets `eval` scores."""

    standard = "standard"
    everyday = "everyday"
    all = "all"


def evaluate(
    ticket: Annotated[
        str, typer.Argument(help="A ticket, a checkpoint, or the name of a shipped ticket.")
    ] = TICKET,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="Folder with denoise/CBSD68, derain/Rain100L, dehaze/SOTS, denoise_real/PolyU; for the suite everyday"
            " any folder of clean photos.",
        ),
    ] = Path("test"),
    suite: Annotated[
        Suite,
        typer.Option(
            "--suite",
            help="standard: the published sets. everyday: photos as people have them, clean and grey too.",
        ),
    ] = Suite.standard,
    report: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to this file as well.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Write the restored images into this folder, one folder per test set, and a sheet of the worst of each.",
        ),
    ] = None,
) -> None:
    """Print PSNR (dB) and SSIM of the degraded and the restored images of each test set found, and the worst image."""
    from mirl_sparse.files import write_whole
    from mirl_sparse.photos.images import write_image
    from mirl_sparse.runtime.restorer import SparseRestorer
    from mirl_sparse.tickets.file import find
    from mirl_sparse.tickets.load import load
    from mirl_training.data.photos import DataError
    from mirl_training.evaluation.evaluate import SUITES
    from mirl_training.evaluation.evaluate import evaluate as score
    from mirl_training.runs.run import WHOLE

    restorer = SparseRestorer(load(find(ticket)), max_memory=WHOLE)
    sets: Sets = {}
    for name, make in SUITES.items():
        if suite.value in (name, "all"):
            sets |= make(data)
    if not sets:
        raise DataError(
            f"{data}: holds no test set of the suite {suite.value}; give --data the folder that holds denoise/CBSD68,"
            " derain/Rain100L or dehaze/SOTS, or with --suite everyday a folder of clean photos"
        )
    worst: dict[str, _Worst] = {}

    def keep(task: str, triple: Triple, restored: Pixels, score: ImageScore) -> None:
        assert images is not None
        write_image(images / _file_name(task) / f"{triple.name}.png", restored)
        worst.setdefault(task, _Worst(3)).add(triple, restored, score)

    scores = []
    for s in score(restorer.restore, sets, keep if images else None):
        scores.append(asdict(s))
        print(
            f"{s.task:<31} {s.images:>4} images   input {s.input_psnr:.2f} / {s.input_ssim:.3f}"
            f"   restored {s.psnr:.2f} / {s.ssim:.3f}   {s.psnr - s.input_psnr:+.2f} dB"
            f"   worst {s.worst_psnr:.2f} ({s.worst_change:+.2f} dB, {s.worst})",
            flush=True,
        )
        if images:
            write_image(images / f"{_file_name(s.task)}.png", worst[s.task].sheet())
        if report:
            write_whole(report, json.dumps({"ticket": ticket, "scores": scores}, indent=1).encode() + b"\n")


def _file_name(task: str) -> str:
    return task.replace(", ", "_").replace(" ", "_")
