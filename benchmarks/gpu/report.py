"""Put what was measured on a GPU beside what was predicted, in README and docs/gpu.md.

    python -m benchmarks.gpu.report

It reads the last run in ``figures.jsonl``. Each part that it writes stands between two comments. Without a
run, nothing changes.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.figures import FigureLog
from benchmarks.gpu.runs import Run, last_run
from mirl_sparse.files import write_whole
from mirl_sparse.performance.gpu_bench import SPARSE, known_gpu

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "README.md", ROOT / "docs" / "gpu.md"
_MEASURED = ", measured"  # behind a GPU's name in the table
_STAGES = "headline", "strongest"  # that time the network at 256x256
_WIDTH = 110


@dataclass(frozen=True)
class Times:
    """Hold the times of the network at 256x256 on a GPU, in seconds.

    Attributes:
        gpu: Name of the GPU.
        versions: The date, and the versions that count.
        sparse: Seconds of the sparse network.
        eager: Seconds of the dense network as PyTorch runs it in float16, or None.
        compiled: Seconds of the fastest compiled dense network, or None.
        strongest: Seconds of the fastest dense network.
    """

    gpu: str
    versions: str
    sparse: float
    eager: float | None
    compiled: float | None
    strongest: float


def times_of(run: Run) -> Times | None:
    """Return the times of a run, or None if the sparse network was not timed beside a dense one.

    A network is timed only after its result has proved right. Each stage times the sparse network anew, so
    ratios are of one stage.
    """
    dense: dict[str, float] = {}
    for stage in _STAGES:
        sparse = run.value(stage, SPARSE)
        for name, line in run.stages.get(stage, {}).items():
            if (
                name.startswith("dense")
                and line["unit"] == "s"
                and line["value"]
                and sparse
                and "," not in name
            ):
                dense[name] = line["value"]
    sparse = run.value(_STAGES[0], SPARSE)
    if not dense or not sparse:
        return None
    compiled = [seconds for name, seconds in dense.items() if "compiled" in name]
    return Times(
        known_gpu(run.gpu) or run.gpu,
        run.versions,
        sparse,
        dense.get("dense eager"),
        min(compiled, default=None),
        min(dense.values()),
    )


def written(page: str, times: Times) -> str:
    """Return a page with the times in it.

    Raises:
        ValueError: If the page has no part to write.
    """
    parts = {"status": _status(times), "claim": _claim(times)}
    found = 0
    for name, text in parts.items():
        page, count = _replaced(page, name, text)
        found += count
    table = _part("table").search(page)
    if table:
        page = page.replace(table[2], _table(table[2], times))
    if not found and not table:
        raise ValueError("it has no part between comments that this program writes")
    return page


def _part(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- gpu {name}[^>]*-->\n)(.*?)(<!-- /gpu {name} -->)", re.DOTALL)


def _replaced(page: str, name: str, text: str) -> tuple[str, int]:
    return _part(name).subn(lambda match: f"{match[1]}{text}{match[3]}", page)


def _wrapped(text: str, hanging: str = "") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=hanging, break_on_hyphens=False) + "\n"


def _status(times: Times) -> str:
    return (
        "\n"
        + _wrapped(
            f"**One GPU has run these kernels: {times.gpu}** ({times.versions}). Rows and sentences that say"
            " *measured* are of that run. Every other time on this page is predicted."
        )
        + "\n"
    )


def _claim(times: Times) -> str:
    return _wrapped(
        f"- **One GPU was measured: {times.gpu}** ({times.versions}). With 10.7% of the weights, a 256x256"
        f" image took {_ms(times.sparse)}, {times.strongest / times.sparse:.1f}x as fast as the strongest"
        " dense network. Every other GPU time in [docs/gpu.md](docs/gpu.md) is predicted.",
        "  ",
    )


def _table(table: str, times: Times) -> str:
    """Return the table with the row of the measured GPU behind that of its prediction."""
    name = times.gpu + _MEASURED
    rows = [row for row in table.rstrip().splitlines() if not row.startswith(f"| {name} |")]
    cells = [name, *(_ms(seconds) for seconds in (times.eager, times.compiled, times.sparse)), "-"]
    cells += [_ratio(seconds, times.sparse) for seconds in (times.eager, times.compiled)]
    columns = next(row for row in rows if row.startswith("|")).count("|") - 1
    new = "| " + " | ".join(cells + ["-"] * (columns - len(cells))) + " |"
    predicted = [i for i, row in enumerate(rows) if row.startswith(f"| {times.gpu} |")]
    last = max(i for i, row in enumerate(rows) if row.startswith("|"))
    rows.insert((predicted[0] if predicted else last) + 1, new)
    return "\n".join(rows) + "\n\n"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _ratio(dense: float | None, sparse: float) -> str:
    return "-" if dense is None else f"{dense / sparse:.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu"), help="folder of results")
    asked = parser.parse_args()
    run = last_run(FigureLog(asked.out / "figures.jsonl"))
    times = times_of(run) if run else None
    if times is None:
        print(
            f"{asked.out / 'figures.jsonl'} has no times of a GPU; make bench-gpu measures", file=sys.stderr
        )
        sys.exit(2)
    for path in PAGES:
        write_whole(path, written(path.read_text(encoding="utf-8"), times).encode())
        print(f"{path.relative_to(ROOT)}: written")


if __name__ == "__main__":
    main()
