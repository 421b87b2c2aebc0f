"""The ``mirl-sparse`` command."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mirl_sparse import restore as restoring
from mirl_sparse.convert import Report, describe, load
from mirl_sparse.convert import convert as convert_checkpoint
from mirl_sparse.errors import UserError
from mirl_sparse.restorer import DEFAULT, SparseRestorer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print(report: Report) -> None:
    table = Table("layer", "shape", "density", "MACs left", "of", "dead rows", "implementation", box=None)
    for x in report.layers:
        shape = "x".join(map(str, x.shape))
        table.add_row(x.name, shape, f"{x.density:.1%}", f"{x.macs / 1e6:.1f} M", f"{x.macs_dense / 1e6:.1f} M",
                      str(x.dead), x.implementation)  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    s = report.statistics
    print(f"density {s['density']:.2%} of {s['weights_dense']:,} weights; MAC density {s['mac_density']:.2%} (convolutions,"
          f" 256x256: {s['macs_256'] / 1e9:.2f} of {s['macs_256_dense'] / 1e9:.2f} G)")  # fmt: skip


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="A PromptIR or MIR-L checkpoint (.ckpt, .pt, .pth, .safetensors).")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The ticket [default: NAME.ticket.safetensors].")
    ] = None,
) -> None:
    """Pack a pruned checkpoint into a ticket, verified against the dense network."""
    target = output or checkpoint.with_name(f"{checkpoint.stem}.ticket.safetensors")
    report = convert_checkpoint(checkpoint, target)
    _print(report)
    print(f"removed {report.removed} weights of dead channels; wrote {target} ({target.stat().st_size / 1e6:.1f} MB)")


@app.command()
def inspect(file: Annotated[Path, typer.Argument(help="A checkpoint or a ticket.")]) -> None:
    """Print what a checkpoint or ticket holds, layer by layer."""
    _print(describe(load(file)))


@app.command()
def restore(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="A file, a folder, or - for standard output.")
    ] = None,
    ticket: Annotated[str, typer.Option(help="A ticket file or the name of a shipped one.")] = DEFAULT,
    backend: Annotated[str, typer.Option(help="auto, cpu or reference.")] = "auto",
    format: Annotated[str | None, typer.Option(help="Write this format instead of the input's.")] = None,
) -> None:
    """Restore photos: noise, rain and haze."""
    jobs = restoring.plan(inputs, output, format)
    restorer = SparseRestorer.from_pretrained(ticket, backend)
    done = 0

    def report(job: restoring.Job, error: UserError | None, seconds: float) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{len(jobs)}] " + (f"failed: {error}" if error else f"{job}  {seconds:.2f} s"), file=sys.stderr)

    if restoring.run(jobs, restorer, report):
        raise typer.Exit(1)


def main() -> None:
    """Run the command; a user's error is one line and exit status 2."""
    for command in entry_points(group="mirl_sparse.commands"):
        app.command(command.name)(command.load())
    try:
        app()
    except UserError as error:
        print(f"mirl-sparse: {error}", file=sys.stderr)
        sys.exit(2)
