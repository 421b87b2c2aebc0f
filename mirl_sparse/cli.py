"""The ``mirl-sparse`` command."""

from __future__ import annotations

import json
import re
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from mirl_kernels._cpu import BackendError
from mirl_sparse import bench as benchmarking
from mirl_sparse import restore as restoring
from mirl_sparse import tuning
from mirl_sparse.cost import cost_model
from mirl_sparse.errors import UserError
from mirl_sparse.gpu_bench import bench_on_gpu
from mirl_sparse.network import MULTIPLE, PromptIR
from mirl_sparse.peers import COMPILED, DENSE, ENGINES
from mirl_sparse.restorer import SparseRestorer
from mirl_sparse.ticket import DEFAULT, find
from mirl_sparse.to_ticket import Report, describe, load, to_ticket
from mirl_sparse.triton_engine import PRECISIONS, check_gpu

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _show(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 200).print(table)  # a pipe wraps nothing


def _print(report: Report) -> None:
    table = Table("layer", "shape", "density", "MACs left", "of", "dead rows", "implementation", box=None)
    for x in report.layers:
        shape = "x".join(map(str, x.shape))
        table.add_row(x.name, shape, f"{x.density:.1%}", f"{x.macs / 1e6:.1f} M", f"{x.macs_dense / 1e6:.1f} M",
                      str(x.dead), x.implementation)  # fmt: skip
    _show(table)
    s = report.statistics
    print(
        f"density {s['density']:.2%} of {s['weights_dense']:,} prunable weights, {s['parameters']:,} of all"
        f" {s['parameters_dense']:,} parameters not zero; MAC density {s['mac_density']:.2%} (convolutions at 256x256:"
        f" {s['macs_256'] / 1e9:.2f} of {s['macs_256_dense'] / 1e9:.2f} G)"
    )


def _bytes(size: str | None) -> int | None:
    """4G, 500M, 300k or plain bytes."""
    if size is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", size.strip().lower())
    given = float(found[1]) * 1000 ** " kmgt".index(found[2] or " ") if found else 0
    if not 1 <= given < 2**63:
        raise UserError(f"--max-memory is {size!r}; expected a size such as 4G or 500M")
    return int(given)


def _multiple(size: int) -> None:
    if size % MULTIPLE:
        raise UserError(f"--size is {size}; expected a multiple of {MULTIPLE}")


@app.command()
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="A PromptIR or MIR-L checkpoint (.ckpt, .pt, .pth, .safetensors).")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The ticket [default: NAME.ticket.safetensors].")
    ] = None,
    tune_for: Annotated[
        float | None, typer.Option("--tune", help="Then find what is fastest on this GPU, for so many seconds.", min=0)
    ] = None,
) -> None:
    """Pack a pruned checkpoint into a ticket, verified against the dense network."""
    if tune_for is not None:
        check_gpu()
    target = output or checkpoint.parent / f"{checkpoint.stem}.ticket.safetensors"
    report = to_ticket(checkpoint, target)
    _print(report)
    print(f"removed {report.removed:,} weights of dead channels; wrote {target} ({target.stat().st_size / 1e6:.1f} MB)")
    if tune_for is not None:
        _tune(target, 256, tune_for, "float16")


@app.command()
def tune(
    ticket: Annotated[str, typer.Argument(help="A ticket, or the name of a shipped one.")],
    size: Annotated[int, typer.Option(help="Side of the square image to be fast on, a multiple of 8.", min=8)] = 256,
    seconds: Annotated[float, typer.Option(help="How long to try other tiles.", min=0)] = 300,
    precision: Annotated[str, typer.Option(help="float16, bfloat16 or float32.")] = "float16",
) -> None:
    """Find what a ticket runs fastest by on this GPU, and keep it beside the ticket; it runs without, too."""
    _multiple(size)
    if precision not in PRECISIONS:
        raise UserError(f"--precision is {precision!r}; expected {', '.join(PRECISIONS)}")
    _tune(find(ticket), size, seconds, precision)


def _tune(ticket: Path, side: int, seconds: float, precision: str) -> None:
    found = tuning.tune(ticket, side, seconds, precision)
    print(
        f"for {side}x{side} pixels in {precision}: {len(found.tiles)} kernels were timed in each of their tiles,"
        f" {len(found.dense)} steps are left to dense operators; wrote {tuning.beside(ticket)}"
    )


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A ticket, a checkpoint, or the name of a shipped ticket.")],
    cost: Annotated[
        bool, typer.Option("--cost", help="Predict how long it takes here; the first time, this machine is measured.")
    ] = False,
    gpus: Annotated[
        bool,
        typer.Option("--gpus", help="Predict how long it takes on GPUs, dense and sparse; needs triton, not a GPU."),
    ] = False,
    size: Annotated[
        int, typer.Option(help="Side of the square image that predictions are about, a multiple of 8.", min=8)
    ] = 256,
) -> None:
    """Print what a checkpoint or ticket holds, layer by layer."""
    _multiple(size)
    network = load(find(file))
    _print(describe(network))
    if cost:
        seconds = cost_model().network(network, size, size)
        print(f"predicted for {size}x{size} on {torch.get_num_threads()} threads here: {seconds * 1e3:.0f} ms")
    if gpus:
        _print_gpus(network, size)


def _print_gpus(network: PromptIR, size: int) -> None:
    from mirl_sparse.predict import DERATED, predict

    rows = predict(network, (1, size, size), progress=lambda gpu: print(f"compiling for {gpu}", file=sys.stderr))
    table = Table(
        "GPU, predicted",
        "dense eager",
        "dense compiled",
        "sparse",
        f"at {DERATED:.0%} of every peak",
        "speed-up",
        "moved, launches",
        "dense steps",
    )
    for row in rows:
        ms = (f"{1e3 * s:.2f} ms" for s in (row.eager, row.compiled, row.sparse, row.sparse_derated))
        table.add_row(
            row.gpu, *ms, f"{row.eager / row.sparse:.1f}x, {row.compiled / row.sparse:.1f}x over compiled",
            f"{row.sparse_bytes / 1e9:.2f} of {row.eager_bytes / 1e9:.2f} GB, {row.launches}", str(len(row.dense_steps)),
        )  # fmt: skip
    _show(table)
    print(
        f"float16, {size}x{size}; moved to and from memory: sparse of dense eager. Predicted, not measured; dense is granted the"
        " peaks of the data sheets. Dense steps are those of the sparse network that dense operators would do faster, and do."
    )


@app.command()
def doctor() -> None:
    """Say what this machine has, which backends work on it, and why the others do not."""
    from mirl_sparse.doctor import backends, machine

    for name, value in machine().items():
        print(f"{name + ':':13} {value}")
    print()
    for name, fault in backends().items():
        print(f"{name + ':':13} " + (f"does not work: {fault}" if fault else "works"))


@app.command()
def restore(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs, or - for standard input.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="A file, a folder, or - for standard output; earlier results are replaced."
        ),
    ] = None,
    ticket: Annotated[str, typer.Option(help="A ticket file or the name of a shipped one.")] = DEFAULT,
    backend: Annotated[str, typer.Option(help="auto, cpu, reference, or triton for a GPU.")] = "auto",
    format: Annotated[str | None, typer.Option(help="Write this format instead of the input's.")] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(help="Such as 4G or 500M; beyond it, photos are restored in tiles. [default: what is left]"),
    ] = None,
) -> None:
    """Restore photos: noise, rain and haze."""
    jobs = restoring.plan(inputs, output, format)
    restorer = SparseRestorer.from_pretrained(ticket, backend, _bytes(max_memory))
    done = 0

    def report(job: restoring.Job, error: UserError | None, seconds: float) -> None:
        nonlocal done
        done += 1
        print(f"[{done}/{len(jobs)}] " + (f"failed: {error}" if error else f"{job}  {seconds:.2f} s"), file=sys.stderr)

    if restoring.run(jobs, restorer, report):
        raise typer.Exit(1)


@app.command()
def bench(
    ticket: Annotated[str, typer.Argument(help="A ticket, a checkpoint, or the name of a shipped ticket.")] = DEFAULT,
    size: Annotated[int, typer.Option(help="Side of the square image, a multiple of 8.", min=8)] = 256,
    runs: Annotated[int, typer.Option(help="Timed runs of each contender, interleaved.", min=1)] = 7,
    compile: Annotated[bool, typer.Option(help="Include torch.compile, which takes minutes to compile.")] = True,
    peers: Annotated[
        bool, typer.Option(help="Include ONNX Runtime, OpenVINO, MNN and XNNPACK where they are installed.")
    ] = True,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print where the sparse network's time goes, and time nothing else.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    backend: Annotated[
        str, typer.Option(help="cpu, or triton: dense and sparse on the GPU, beside what is predicted for it.")
    ] = "cpu",
) -> None:
    """Time dense against sparse in one process, each dense configuration at its best."""
    _multiple(size)
    if backend not in ("cpu", "triton") or (profile and backend == "triton"):
        raise UserError(f"--backend is {backend!r}; expected cpu or, without --profile, triton")
    network = load(file := find(ticket))
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    if profile:
        result = benchmarking.profile(network, image, runs)
    elif backend == "triton":
        check_gpu()
        result = bench_on_gpu(network, image, runs, compile, tuning.read_tuning(file, "float16"))
    else:
        left = (() if compile else COMPILED) + (() if peers else ENGINES)
        result = benchmarking.bench(network, image, runs, [name for name in DENSE if name not in left])
    if as_json:
        print(json.dumps(result, indent=1))
        return
    if profile:
        _show_profile(result)
        return
    for name, reason in result["left_out"].items():
        print(f"{name}: left out ({reason})", file=sys.stderr)
    _show_rows(result["rows"], sparse := next(name for name, row in result["rows"].items() if "speedup" in row))
    print(f"{size}x{size}, interleaved runs, torch {result['torch']}, ", end="")
    if backend == "triton":
        print(f"{result['gpu']}; clocks at work: {result['clocks']}")
    else:
        print(
            f"{result['threads']} threads of {result['processor']} ({result['isa']}), {result['allocator']} allocator"
        )
    strongest, default = (result["rows"][sparse][k] for k in ("speedup", "over_default"))
    print(
        f"sparse is {strongest['ratio']:.2f}x as fast as the strongest dense run ({strongest['over']}; with 95% certainty"
        f" {strongest['low']:.2f} to {strongest['high']:.2f}), {default['ratio']:.2f}x as fast as PyTorch by default"
        f" ({default['over']})"
    )
    if backend == "cpu":
        _print_roofline(result["profile"])
    elif guess := result["predicted"]:
        print(
            f"predicted for {guess['gpu']}: sparse {1e3 * guess['sparse']:.2f} ms, dense eager {1e3 * guess['eager']:.2f} ms,"
            f" compiled {1e3 * guess['compiled']:.2f} ms"
        )
    else:
        print("no prediction was made for this GPU")


def _show_rows(rows: dict[str, dict[str, Any]], sparse: str) -> None:
    table = Table(
        "configuration", "runs", "median", "20%", "80%", "first result", "difference", "against sparse", box=None
    )
    for name, row in rows.items():
        times = (f"{1e3 * row[k]:.2f} ms" for k in ("median", "p20", "p80", "first_call"))
        ratio = row["median"] / rows[sparse]["median"]
        table.add_row(name, str(row["runs"]), *times, f"{row['difference']:.1e}", f"{ratio:.2f}x")
    _show(table)


def _show_profile(found: dict[str, Any]) -> None:
    table = Table("step", "op", "time", "of all", "GFLOP/s", "GB/s", "of the limit", box=None)
    for row in [*found["steps"], {"name": "all", "op": "", **found}]:
        seconds = row["seconds"]
        table.add_row(row["name"], row["op"], f"{seconds * 1e3:.2f} ms", f"{seconds / found['seconds']:.1%}",
                      f"{2 * row['macs'] / seconds / 1e9:.1f}", f"{row['bytes'] / seconds / 1e9:.1f}",
                      f"{row['limit'] / seconds:.0%}")  # fmt: skip
    _show(table)
    _print_roofline(found)


def _print_roofline(found: dict[str, Any]) -> None:
    print(
        f"roofline: {found['macs'] / 1e9:.2f} G multiply-adds at {found['gflops_peak']:.0f} GFLOP/s and"
        f" {found['bytes'] / 1e9:.2f} GB at {found['gbytes_peak']:.1f} GB/s, as measured here, allow {found['limit']:.3f} s;"
        f" the sparse steps take {found['seconds']:.3f} s, {found['fraction']:.0%} of the limit reached"
    )


def main() -> None:
    """Run the command; an error that the user can mend is one line and exit status 2."""
    warnings.formatwarning = lambda message, *_, **__: f"mirl-sparse: {message}\n"
    for command in entry_points(group="mirl_sparse.commands"):
        app.command(command.name)(command.load())
    try:
        app()
    except (UserError, BackendError) as error:
        print(f"mirl-sparse: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that may not be written to
        what = f"{error.filename}: " if error.filename else ""
        print(f"mirl-sparse: {what}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        memory = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
        if not memory and "can't allocate memory" not in str(error):  # as PyTorch says it on processors
            raise
        reason = " ".join(str(error).split())
        print(f"mirl-sparse: not enough memory ({reason}); give less at once, such as a smaller image", file=sys.stderr)
        sys.exit(2)
