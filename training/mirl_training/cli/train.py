"""Run ``mirl-sparse train``: train a network and prune it in rounds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mirl_training.runs import OnStep, Run, StepReport

_SCALARS = ("loss", "learning_rate", "seconds_per_step", "density", "seconds_per_image", "unsettled")


class _Lines:
    """Show progress where no terminal is: a line per validation."""

    def __call__(self, report: StepReport) -> None:
        if "psnr" in report:
            print(_describe(report), flush=True)


class _Bar:
    """Show progress in a terminal: a moving bar per round, and a line per validation."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.round = progress, -1
        self.task: TaskID | None = None

    def __call__(self, report: StepReport) -> None:
        if self.task is None or report["round"] != self.round:
            if self.task is not None:
                self.progress.remove_task(self.task)
            self.round = report["round"]
            self.task = self.progress.add_task(f"round {self.round}", total=report["steps"], note="")
        note = f"loss {report['loss']:.4f}, {report['seconds_left'] / 60:.0f} min left"
        self.progress.update(self.task, completed=report["step"], note=note)
        if "psnr" in report:
            self.progress.console.print(_describe(report))


class _TensorBoard:
    """Write what is told of a validation for TensorBoard, and tell ``further`` everything."""

    def __init__(self, folder: Path, further: OnStep) -> None:
        from mirl_sparse.errors import UserError

        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "--tensorboard needs the package tensorboard; install it: pip install tensorboard"
            ) from None
        self._kind, self._folder, self._further = SummaryWriter, folder / "tensorboard", further
        self._writer: Any = None  # until there is something to write

    def __call__(self, report: StepReport) -> None:
        self._further(report)
        if "psnr" in report:
            self._writer = self._writer or self._kind(str(self._folder))
            group, step = f"round_{report['round']:02d}", report["step"]
            for name, value in report.items():
                if name in _SCALARS:
                    self._writer.add_scalar(f"{group}/{name}", value, step)
            for task, value in report["psnr"].items():
                self._writer.add_scalar(f"{group}/PSNR/{task}", value, step)
            self._writer.flush()


def _describe(report: StepReport) -> str:
    scores = "  ".join(f"{task} {value:.2f}" for task, value in report["psnr"].items())
    return (
        f"round {report['round']}  step {report['step']}/{report['steps']}  density {report['density']:.1%}"
        f"  loss {report['loss']:.4f}  PSNR {scores}  {report['seconds_left'] / 60:.0f} min left"
    )


def train(
    config: Annotated[Path, typer.Argument(help="YAML file with the settings of the run.")],
    data: Annotated[
        Path, typer.Option("--data", help="Folder that the data paths of CONFIG start from.")
    ] = Path("."),
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run, by default runs/NAME-DIGEST."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            "--engine", help="What computes a step: auto, fused, reference (auto: fused where it was built)."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option("--device", help="Where it trains: cpu or cuda.")] = "cpu",
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes", help="Stop after so many minutes, at the next step; the same command goes on.", min=0
        ),
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Write events for TensorBoard below the run's folder as well."),
    ] = False,
) -> None:
    """Train a network and prune it in rounds; start it again to go on where it was stopped.

    Under torchrun, with --output on a disk that all processes share, they share every batch.
    """
    from mirl_sparse.runtime import Allocator
    from mirl_training.runs import Run, load_config

    settings = load_config(config)
    Allocator().tune()  # every step wants the same memory again
    folder = output or Path("runs") / f"{config.stem}-{settings.digest}"
    with _progress() as on_step:
        if tensorboard and os.environ.get("RANK", "0") == "0":
            on_step = _TensorBoard(folder, on_step)
        _go(Run(settings, data, folder, on_step, engine, device), minutes)


@contextmanager
def _progress() -> Iterator[OnStep]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}  {task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress)


def _go(run: Run, minutes: float | None) -> None:
    from mirl_training.runs import OutOfTime

    if run.world.leads:
        print(run.engine_note, flush=True)
    try:
        last = run.go(minutes)
    except OutOfTime as stopped:
        if run.world.leads:
            print(f"stopped after {minutes:g} minutes: {stopped} ({run.folder}); the same command goes on")
            print(f"the weights so far: {run.folder / 'latest.safetensors'}")
        return
    if run.world.leads:
        print(f"finished: {last}, report: {run.folder / 'report.md'}")
        print(f"next: mirl-sparse convert {last / 'weights.safetensors'}")
