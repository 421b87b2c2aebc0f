"""Run ``mirl-sparse eval``: score a ticket on test sets."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mirl_sparse.defaults import TICKET

if TYPE_CHECKING:
    from mirl_sparse import NetworkRestorer, SparseRestorer
    from mirl_training.evaluation import ImageScore, Pixels, Score, Sets, Triple

_SHEET_ROWS = 3


class _Worst:
    """Keep the images of a test set that gained least, for its sheet."""

    def __init__(self) -> None:
        self._images: list[tuple[float, Triple, Pixels, ImageScore]] = []

    def add(self, triple: Triple, restored: Pixels, score: ImageScore) -> None:
        self._images.append((score.psnr - score.input_psnr, triple, restored, score))
        self._images = sorted(self._images, key=lambda row: row[0])[:_SHEET_ROWS]

    def sheet(self) -> Pixels:
        from mirl_training.evaluation import sheet

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
                for change, triple, restored, s in self._images
            ]
        )


class Suite(str, Enum):
    """Name the test sets that `eval` scores."""

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
            help="Folder with denoise/CBSD68, derain/Rain100L, dehaze/SOTS, denoise_real/PolyU; for the suite"
            " everyday any folder of clean photos.",
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
            help="Write the restored images into this folder, one folder per test set, and a sheet of the"
            " worst of each.",
        ),
    ] = None,
) -> None:
    """Print PSNR (dB) and SSIM of each test set, of degraded and of restored images, and its worst image."""
    from mirl_sparse.files import write_whole
    from mirl_sparse.photos import write_image
    from mirl_training.evaluation import evaluate as score_sets

    restorer = _restorer(ticket)
    worst: dict[str, _Worst] = {}

    def write(task: str, triple: Triple, restored: Pixels, score: ImageScore) -> None:
        assert images is not None
        write_image(images / _file_name(task) / f"{triple.name}.png", restored)
        worst.setdefault(task, _Worst()).add(triple, restored, score)

    scores = []
    for score in score_sets(restorer.restore, _sets(data, suite), write if images else None):
        scores.append(asdict(score))
        print(_describe(score), flush=True)
        if images:
            write_image(images / f"{_file_name(score.task)}.png", worst[score.task].sheet())
        if report:
            write_whole(report, json.dumps({"ticket": ticket, "scores": scores}, indent=1).encode() + b"\n")


def _restorer(ticket: str) -> SparseRestorer | NetworkRestorer:
    """Return the restorer of a ticket or checkpoint whose results are as large as its images."""
    from mirl_sparse import NetworkRestorer, SparseRestorer
    from mirl_sparse.architectures.image_network import ImageNetwork
    from mirl_sparse.errors import UserError
    from mirl_sparse.tickets import find_ticket, load_any_network
    from mirl_training.runs import UNLIMITED_MEMORY

    network = load_any_network(find_ticket(ticket))
    if not isinstance(network, ImageNetwork):
        return SparseRestorer(network, max_memory=UNLIMITED_MEMORY)
    if network.scale != 1:
        raise UserError(
            f"{ticket}: {network.architecture} here enlarges images {network.scale}x, and the test sets have"
            " clean images as large as the degraded ones; expected a network that keeps the size"
        )
    restorer = NetworkRestorer(network, max_memory=UNLIMITED_MEMORY)
    restorer.check_photos()
    return restorer


def _sets(data: Path, suite: Suite) -> Sets:
    from mirl_training.data import DataError
    from mirl_training.evaluation import SUITES

    sets: Sets = {}
    for name, make in SUITES.items():
        if suite.value in (name, "all"):
            sets |= make(data)
    if not sets:
        raise DataError(
            f"{data}: holds no test set of the suite {suite.value}; give --data the folder that"
            " holds denoise/CBSD68, derain/Rain100L or dehaze/SOTS, or with --suite everyday a folder of"
            " clean photos"
        )
    return sets


def _describe(score: Score) -> str:
    return (
        f"{score.task:<31} {score.images:>4} images   input {score.input_psnr:.2f} / {score.input_ssim:.3f}"
        f"   restored {score.psnr:.2f} / {score.ssim:.3f}   {score.psnr - score.input_psnr:+.2f} dB"
        f"   worst {score.worst_psnr:.2f} ({score.worst_change:+.2f} dB, {score.worst})"
    )


def _file_name(task: str) -> str:
    return task.replace(", ", "_").replace(" ", "_")
