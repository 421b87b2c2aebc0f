"""``mirl-sparse bench``: dense against sparse, in turns, in one process."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from mirl_sparse.cli.printing import check_side, show
from mirl_sparse.defaults import TICKET
from mirl_sparse.errors import UserError


def bench(
    ticket: Annotated[
        str, typer.Argument(help="A ticket, a checkpoint, or the name of a shipped ticket.")
    ] = TICKET,
    size: Annotated[int, typer.Option(help="Side of the square image, a multiple of 8.", min=8)] = 256,
    runs: Annotated[int, typer.Option(help="Timed runs of each contender, interleaved.", min=1)] = 7,
    compile: Annotated[
        bool, typer.Option(help="Include torch.compile, which takes minutes to compile.")
    ] = True,
    peers: Annotated[
        bool, typer.Option(help="Include ONNX Runtime, OpenVINO, MNN and XNNPACK where they are installed.")
    ] = True,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Print where the sparse network's time goes, and time nothing else."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    backend: Annotated[
        str,
        typer.Option(help="cpu, or triton: dense and sparse on the GPU, beside what is predicted for it."),
    ] = "cpu",
) -> None:
    """Time dense against sparse in one process, each dense configuration at its best."""
    import torch

    from mirl_sparse.performance import bench as benchmarking
    from mirl_sparse.performance.gpu_bench import bench_on_gpu
    from mirl_sparse.performance.peers import COMPILED, DENSE, ENGINES
    from mirl_sparse.runtime.triton import check_gpu
    from mirl_sparse.runtime.tuning import read_tuning
    from mirl_sparse.tickets.file import find
    from mirl_sparse.tickets.load import load

    check_side(size)
    if backend not in ("cpu", "triton") or (profile and backend == "triton"):
        raise UserError(f"--backend is {backend!r}; expected cpu or, without --profile, triton")
    network = load(file := find(ticket))
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    if profile:
        result = benchmarking.profile(network, image, runs)
    elif backend == "triton":
        check_gpu()
        result = bench_on_gpu(network, image, runs, compile, read_tuning(file, "float16"))
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
    _show_rows(
        result["rows"], sparse := next(name for name, row in result["rows"].items() if "speedup" in row)
    )
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
    from rich.table import Table

    table = Table(
        "configuration",
        "runs",
        "median",
        "20%",
        "80%",
        "first result",
        "difference",
        "against sparse",
        box=None,
    )
    for name, row in rows.items():
        times = (f"{1e3 * row[k]:.2f} ms" for k in ("median", "p20", "p80", "first_call"))
        ratio = row["median"] / rows[sparse]["median"]
        table.add_row(name, str(row["runs"]), *times, f"{row['difference']:.1e}", f"{ratio:.2f}x")
    show(table)


def _show_profile(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("step", "op", "time", "of all", "GFLOP/s", "GB/s", "of the limit", box=None)
    for row in [*found["steps"], {"name": "all", "op": "", **found}]:
        seconds = row["seconds"]
        table.add_row(row["name"], row["op"], f"{seconds * 1e3:.2f} ms", f"{seconds / found['seconds']:.1%}",
                      f"{2 * row['macs'] / seconds / 1e9:.1f}", f"{row['bytes'] / seconds / 1e9:.1f}",
                      f"{row['limit'] / seconds:.0%}")  # fmt: skip
    show(table)
    _print_roofline(found)


def _print_roofline(found: dict[str, Any]) -> None:
    print(
        f"roofline: {found['macs'] / 1e9:.2f} G multiply-adds at {found['gflops_peak']:.0f} GFLOP/s and"
        f" {found['bytes'] / 1e9:.2f} GB at {found['gbytes_peak']:.1f} GB/s, as measured here, allow {found['limit']:.3f} s;"
        f" the sparse steps take {found['seconds']:.3f} s, {found['fraction']:.0%} of the limit reached"
    )
