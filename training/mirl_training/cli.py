"""``mirl-sparse train`` and ``mirl-sparse eval``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from mirl_sparse.allocator import Allocator
from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.images import write_image
from mirl_sparse.restorer import SparseRestorer
from mirl_sparse.ticket import DEFAULT, find
from mirl_sparse.to_ticket import load
from mirl_training.config import load_config
from mirl_training.data import DataError
from mirl_training.evaluate import SUITES, ImageScore, Pixels, Sets, Triple
from mirl_training.evaluate import evaluate as score
from mirl_training.fused import ENGINES
from mirl_training.run import WHOLE, OutOfTime, Run
from mirl_training.sheet import sheet


class _Lines:
    """Progress where no terminal is: a line per validation."""

    def __call__(self, report: dict[str, Any]) -> None:
        if "psnr" in report:
            print(_describe(report), flush=True)


class _Bar:
    """Progress in a terminal: a moving bar per round, and a line per validation."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.round = progress, -1
        self.task: TaskID | None = None

    def __call__(self, report: dict[str, Any]) -> None:
        if self.task is None or report["round"] != self.round:
            if self.task is not None:
                self.progress.remove_task(self.task)
            self.round = report["round"]
            self.task = self.progress.add_task(f"round {self.round}", total=report["steps"], note="")
        left = f"{report['seconds_left'] / 60:.0f} min left"
        self.progress.update(self.task, completed=report["step"], note=f"loss {report['loss']:.4f}, {left}")
        if "psnr" in report:
            self.progress.console.print(_describe(report))


class _TensorBoard:
    """What is told of a validation, for TensorBoard as well; ``further`` is told everything."""

    def __init__(self, folder: Path, further: Callable[[dict[str, Any]], None]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs the package tensorboard; install it: pip install tensorboard"
            ) from None
        self._kind, self._folder, self._further = SummaryWriter, folder / "tensorboard", further
        self._writer: Any = None  # until there is something to write

    def __call__(self, report: dict[str, Any]) -> None:
        self._further(report)
        if "psnr" in report:
            self._writer = self._writer or self._kind(str(self._folder))
            group, step = f"round_{report['round']:02d}", report["step"]
            for name in ("loss", "learning_rate", "seconds_per_step", "density", "seconds_per_image", "unsettled"):
                if name in report:
                    self._writer.add_scalar(f"{group}/{name}", report[name], step)
            for task, value in report["psnr"].items():
                self._writer.add_scalar(f"{group}/PSNR/{task}", value, step)
            self._writer.flush()


def _describe(report: dict[str, Any]) -> str:
    scores = "  ".join(f"{task} {value:.2f}" for task, value in report["psnr"].items())
    return (
        f"round {report['round']}  step {report['step']}/{report['steps']}  density {report['density']:.1%}"
        f"  loss {report['loss']:.4f}  PSNR {scores}  {report['seconds_left'] / 60:.0f} min left"
    )


def train(
    config: Annotated[Path, typer.Argument(help="YAML file with the settings of the run.")],
    data: Annotated[Path, typer.Option("--data", help="Folder that the data paths of CONFIG start from.")] = Path("."),
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run [default: runs/NAME-DIGEST of its settings]."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option("--engine", help=f"What computes a step: {', '.join(ENGINES)} (auto: fused where it was built)."),
    ] = "auto",
    device: Annotated[str, typer.Option("--device", help="Where it trains: cpu or cuda.")] = "cpu",
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Stop after so many minutes, at the next step; the same command goes on.", min=0),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write events for TensorBoard below the run's folder as well.")
    ] = False,
) -> None:
    """Train a network and prune it in rounds; start it again to go on where it was stopped. Under torchrun, with --output on a
    disk that all processes share, they share every batch."""
    settings = load_config(config)
    Allocator().tune()  # every step wants the same memory again
    folder = output or Path("runs") / f"{config.stem}-{settings.digest}"

    def go(report: Callable[[dict[str, Any]], None]) -> None:
        leads = os.environ.get("RANK", "0") == "0"
        run = Run(
            settings, data, folder, _TensorBoard(folder, report) if tensorboard and leads else report, engine, device
        )
        if run.world.leads:
            print(run.engine_note, flush=True)
        try:
            last = run.go(minutes)
        except OutOfTime as stopped:
            if run.world.leads:
                print(f"stopped after {minutes:g} minutes: {stopped} ({folder}); the same command goes on")
            return
        if run.world.leads:
            print(f"finished: {last}, report: {folder / 'report.md'}")
            print(f"next: mirl-sparse convert {last / 'weights.safetensors'}")

    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}  {task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            go(_Bar(progress))
    else:
        go(_Lines())


class _Worst:
    """The images of a test set that gained least, for its sheet."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._left: list[tuple[float, Triple, Pixels, ImageScore]] = []

    def add(self, triple: Triple, restored: Pixels, score: ImageScore) -> None:
        self._left.append((score.psnr - score.input_psnr, triple, restored, score))
        self._left = sorted(self._left, key=lambda row: row[0])[: self._rows]

    def sheet(self) -> Pixels:
        return sheet(
            [
                (
                    [triple.degraded, restored, triple.clean],
                    [f"{s.name}: {s.input_psnr:.2f} dB", f"restored: {s.psnr:.2f} dB ({change:+.2f})", "clean"],
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
    ticket: Annotated[str, typer.Argument(help="A ticket, a checkpoint, or the name of a shipped ticket.")] = DEFAULT,
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
        typer.Option("--suite", help="standard: the published sets. everyday: photos as people have them, clean and grey too."),
    ] = Suite.standard,
    report: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file as well.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Write the restored images into this folder, one folder per test set, and a sheet of the worst of each.",
        ),
    ] = None,
) -> None:
    """Print PSNR (dB) and SSIM of the degraded and the restored images of each test set found, and the worst image."""
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
