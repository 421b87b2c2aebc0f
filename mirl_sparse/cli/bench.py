"""Offer ``mirl-sparse bench``: dense against sparse, in turns, in one process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from mirl_sparse.choices import BackendName, Precision
from mirl_sparse.cli.printing import show
from mirl_sparse.defaults import TICKET
from mirl_sparse.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from mirl_sparse.architectures.image_network import ImageNetwork
    from mirl_sparse.architectures.promptir import PromptIR
    from mirl_sparse.performance.bench import BenchResult
    from mirl_sparse.performance.comparison import ComparisonResult
    from mirl_sparse.performance.gpu_bench import GpuBenchResult
    from mirl_sparse.performance.profile import Profile, ProfileRow
    from mirl_sparse.performance.timing import ContenderRow, TurnsResult


def bench(
    ticket: Annotated[
        str, typer.Argument(help="A ticket, a checkpoint, or the name of a shipped ticket.")
    ] = TICKET,
    size: Annotated[int, typer.Option(help="Side of the square image, a multiple of 8 or 16.", min=8)] = 256,
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
    ] = BackendName.CPU.value,
) -> None:
    """Time dense against sparse in one process, each dense configuration at its best."""
    import torch

    from mirl_sparse.architectures.image_network import ImageNetwork
    from mirl_sparse.tickets import find_ticket, load_any_network

    if backend not in (BackendName.CPU, BackendName.TRITON) or (profile and backend == BackendName.TRITON):
        raise UserError(f"--backend is {backend!r}; expected cpu or, without --profile, triton")
    file = find_ticket(ticket)
    network = load_any_network(file)
    if isinstance(network, ImageNetwork):
        if profile or backend == BackendName.TRITON:
            option = "--profile" if profile else f"--backend {backend}"
            raise UserError(f"{option} needs a PromptIR, {ticket} is {network.architecture}; leave it out")
        _output(_any_network(network, size, runs, compile, peers), as_json, _print_comparison)
        return
    network.config.check_side(size)
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    if profile:
        from mirl_sparse.performance.profile import profile as measure

        _output(measure(network, image, runs), as_json, _print_profile)
    elif backend == BackendName.TRITON:
        _output(_on_gpu(network, file, image, runs, compile), as_json, _print_gpu_bench)
    else:
        _output(_on_cpu(network, image, runs, compile, peers), as_json, _print_bench)


def _on_cpu(network: PromptIR, image: Tensor, runs: int, compile: bool, peers: bool) -> BenchResult:
    from mirl_sparse.performance.bench import bench as measure

    return measure(network, image, runs, _dense_contenders(compile, peers))


def _any_network(network: ImageNetwork, size: int, runs: int, compile: bool, peers: bool) -> ComparisonResult:
    from mirl_sparse.sparsification.bench import bench_network

    return bench_network(network, size, runs, _dense_contenders(compile, peers), compile)


def _dense_contenders(compile: bool, peers: bool) -> list[str]:
    from mirl_sparse.performance.peers import COMPILED, DENSE, ENGINES

    excluded = (() if compile else COMPILED) + (() if peers else ENGINES)
    return [name for name in DENSE if name not in excluded]


def _on_gpu(network: PromptIR, file: Path, image: Tensor, runs: int, compile: bool) -> GpuBenchResult:
    from mirl_sparse.performance.gpu_bench import bench_on_gpu
    from mirl_sparse.runtime.gpu import check_gpu
    from mirl_sparse.runtime.tuning import read_tuning

    check_gpu()
    return bench_on_gpu(network, image, runs, compile, read_tuning(file, Precision.FLOAT16))


class _Result(Protocol):
    def to_dict(self) -> dict[str, Any]: ...


_R = TypeVar("_R", bound=_Result)


def _output(result: _R, as_json: bool, print_text: Callable[[_R], None]) -> None:
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        print_text(result)


def _print_bench(result: BenchResult) -> None:
    _print_comparison(result)
    _print_roofline(result.profile)


def _print_comparison(result: ComparisonResult) -> None:
    sparse = _print_rows(result)
    environment = result.environment
    print(
        f"{_size(result.shape)}, interleaved runs, torch {environment.torch},"
        f" {environment.threads} threads of {environment.processor} ({environment.isa}),"
        f" {result.allocator} allocator"
    )
    _print_speedup(sparse)


def _print_gpu_bench(result: GpuBenchResult) -> None:
    sparse = _print_rows(result)
    print(
        f"{_size(result.shape)}, interleaved runs, torch {result.torch}, {result.gpu};"
        f" clocks at work: {result.clocks}"
    )
    _print_speedup(sparse)
    if prediction := result.predicted:
        print(
            f"predicted for {prediction.gpu}: sparse {_ms(prediction.sparse)},"
            f" dense eager {_ms(prediction.eager)}, compiled {_ms(prediction.compiled)}"
        )
    else:
        print("no prediction was made for this GPU")


def _print_rows(result: TurnsResult) -> ContenderRow:
    """Print a table of all contenders; return the first sparse one's row."""
    from rich.table import Table

    for name, reason in result.left_out.items():
        print(f"{name}: left out ({reason})", file=sys.stderr)
    sparse = next(row for row in result.rows.values() if row.speedup)
    columns = (
        "configuration",
        "runs",
        "median",
        "20%",
        "80%",
        "first result",
        "difference",
        "PSNR",
        "against sparse",
    )
    table = Table(*columns, box=None)
    for name, row in result.rows.items():
        times = map(_ms, (row.median, row.p20, row.p80, row.first_call))
        ratio = row.median / sparse.median
        table.add_row(
            name, str(row.runs), *times, f"{row.difference:.1e}", f"{row.psnr:.0f} dB", f"{ratio:.2f}x"
        )
    show(table)
    return sparse


def _print_speedup(sparse: ContenderRow) -> None:
    strongest, default = sparse.speedup, sparse.over_default
    assert strongest and default
    print(
        f"sparse is {strongest.ratio:.2f}x as fast as the strongest dense run ({strongest.over}; with"
        f" 95% certainty {strongest.low:.2f} to {strongest.high:.2f}), {default.ratio:.2f}x as"
        f" fast as PyTorch by default ({default.over})"
    )


def _print_profile(profile: Profile) -> None:
    from rich.table import Table

    table = Table("step", "op", "time", "of all", "GFLOP/s", "GB/s", "of the limit", box=None)
    rows: list[tuple[str, str, ProfileRow | Profile]] = [(step.name, step.op, step) for step in profile.steps]
    for name, op, row in [*rows, ("all", "", profile)]:
        table.add_row(
            name,
            op,
            _ms(row.seconds),
            f"{row.seconds / profile.seconds:.1%}",
            f"{2 * row.macs / row.seconds / 1e9:.1f}",
            f"{row.bytes / row.seconds / 1e9:.1f}",
            f"{row.limit / row.seconds:.0%}",
        )
    show(table)
    _print_roofline(profile)


def _print_roofline(profile: Profile) -> None:
    print(
        f"roofline: {profile.macs / 1e9:.2f} G multiply-adds at {profile.gflops_peak:.0f} GFLOP/s and"
        f" {profile.bytes / 1e9:.2f} GB at {profile.gbytes_peak:.1f} GB/s, as measured here, allow"
        f" {profile.limit:.3f} s; the sparse steps take {profile.seconds:.3f} s, {profile.fraction:.0%} of"
        " the limit reached"
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[3]}"
