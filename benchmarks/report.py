"""Write the pages about the results: per processor Markdown, HTML and plots, and the tables of README and docs.

    python benchmarks/report.py          # reads results/*/full.jsonl and writes everything again

`README.md` gets one short table, `docs/performance.md` a longer part. Both stand between the same two
comments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import results
import scaling
from cases import SMALL
from results import Row

from mirl_sparse.files import write_whole
from mirl_sparse.performance.peers import DENSE, EAGER, STOCK

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
NOT_SHOWN = (
    "This page shows one machine and one network, PromptIR; [networks.md](../../networks.md) has others."
    " No GPU was measured."
)


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.{0 if seconds >= 0.1 else 1}f} ms"


def _times(ratio: Row) -> str:
    return f"**{ratio['ratio']:.2f}x** ({ratio['low']:.2f}-{ratio['high']:.2f})"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


class Report:
    """The rows of one machine, by section."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.machine = next(row for row in rows if "allocator" in row)

    def section(self, name: str, **facts: Any) -> list[Row]:
        """The rows of a section that have these facts."""
        return [r for r in self.rows if r["section"] == name and all(r.get(k) == v for k, v in facts.items())]

    def timed(self, name: str, **facts: Any) -> list[Row]:
        """Its sparse rows that have a speed-up: those that proved right."""
        return [r for r in self.section(name, **facts) if "speedup" in r]

    def ops(self) -> tuple[list[Row], list[Row]]:
        """The timed rows of single ops: of this project's kernels, and of PyTorch's own sparse matrices."""
        own = [r for r in self.timed("op") if r["contender"].startswith("sparse cpu")]
        return own, [r for r in self.timed("op") if r not in own]

    def strongest(self, row: Row) -> Row:
        """The dense row that a sparse one is compared with."""
        return next(
            r for r in self.section(row["section"], case=row["case"], contender=row["speedup"]["over"])
        )

    def over_float32(self, row: Row) -> str:
        """Over the strongest dense run of the precision that the sparse kernels have."""
        dense = [r["median"] for r in self.section(row["section"], case=row["case"])
                 if r["contender"] in DENSE and "bfloat16" not in r["contender"] and "median" in r]  # fmt: skip
        return f"{min(dense) / row['median']:.1f}x"

    @property
    def by_round(self) -> bool:
        """Whether ratios are medians of those by round; earlier suites kept medians alone."""
        return any("times" in r for r in self.rows)

    @property
    def remarks(self) -> list[str]:
        """Return what a reader must know: whether `small` or the suite were other ones than today's."""
        found = []
        measured = {f"{r['density']:.1%}" for r in self.timed("network", network="small")}
        if measured - {(shipped := f"{SMALL[0][1]:.1%}")}:
            found.append(
                f"`small` was an earlier ticket with {', '.join(sorted(measured))} of its weights; the shipped one keeps"
                f" {shipped}."
            )
        if not self.by_round:
            found.append("An earlier form of the suite made these results: each ratio is one of medians.")
        return found

    def has(self, part: Callable[[Report], list[str]]) -> bool:
        """Whether all was measured that a part of the page is about."""
        return all(map(self.section, PARTS[part]))

    def cases(self, name: str) -> list[str]:
        """The cases of a section, in order."""
        return list(dict.fromkeys(r["case"] for r in self.section(name)))


def crossover(rows: list[Row]) -> float | None:
    """The density below which a sparse contender is faster than the strongest dense one: where the line through the measured
    points, density and speed-up both by their logarithms, last crosses 1. None where it wins, or loses, at all of them."""
    points = sorted((r["density"], r["speedup"]["ratio"]) for r in rows)
    for (a, slow), (b, fast) in zip(reversed(points[:-1]), reversed(points[1:]), strict=True):
        if slow >= 1 > fast:
            part = np.log(slow) / (np.log(slow) - np.log(fast))
            return float(np.exp(np.log(a) + part * (np.log(b) - np.log(a))))
    return None


def _crossover(rows: list[Row]) -> str:
    found = crossover(rows)
    doubtful = [f"{100 * r['density']:g}%" for r in rows if r["speedup"]["low"] < 1 <= r["speedup"]["ratio"]]
    doubt = f" (within the noise at {', '.join(doubtful)})" if doubtful else ""
    if found:
        return f"below {found:.0%}{doubt}"
    return ("at every density" if all(r["speedup"]["ratio"] >= 1 for r in rows) else "at no density") + doubt


def _network(report: Report) -> list[str]:
    lines = ["## The network at 256x256", ""]
    rows = [
        [r["case"].split()[0], f"{r['criterion']} {r['density']:.1%}", f"{r['macs'] / 1e9:.2f} G", _ms(r["median"]),
         f"{_ms(report.strongest(r)['median'])} ({r['speedup']['over'].removeprefix('dense ')})", _times(r["speedup"]),
         report.over_float32(r), f"{r['over_default']['ratio']:.1f}x", f"{r['difference']:.0e}"]
        for r in report.timed("network")
    ]  # fmt: skip
    lines += _table(["network", "weights kept", "multiply-adds", "sparse", "strongest dense", "over strongest dense",
                     "over strongest in float32", "over PyTorch by default", "off by"], rows)  # fmt: skip
    lines += [
        "Every dense run (medians, 20% and 80% percentiles), and how long those that compile or pack take until their first result:",
        "",
    ]
    dense = [
        [r["case"].split()[0], r["contender"].removeprefix("dense "),
         *([_ms(r["median"]), f"{_ms(r['p20'])} - {_ms(r['p80'])}", "-" if r["contender"] in EAGER or "times" not in r else _ms(r["first_call"])]
           if "median" in r else ["-", "-", r["left_out"]])]
        for r in report.section("network") if r["contender"] in DENSE
    ]  # fmt: skip
    lines += _table(["network", "dense", "median", "20% - 80%", "first result"], dense)
    for case in report.cases("network"):
        run = {r["contender"] for r in report.section("network", case=case)}
        if missing := [name.removeprefix("dense ") for name in DENSE if name not in run]:
            lines += [f"Not among the dense runs of {case}: {', '.join(missing)}.", ""]
    return lines


def _densities(report: Report) -> list[str]:
    rows = report.timed("density")
    lines = ["## By density", "", "![latency against density](density.png)", ""]
    for criterion in ("layerwise", "uneven"):
        own = [r for r in rows if r["criterion"] == criterion or r["density"] == 1]
        lines.append(f"- {criterion}: sparse wins {_crossover(own)}")
    table = [[r["criterion"], f"{r['density']:.1%}", f"{r['macs'] / 1e9:.2f} G", _ms(r["median"]), _times(r["speedup"])]
             for r in rows]  # fmt: skip
    return [
        *lines,
        "",
        *_table(["criterion", "weights kept", "multiply-adds", "sparse", "over strongest dense"], table),
    ]


def _ops(report: Report) -> list[str]:
    lines = ["## Op by op", "", "![roofline](roofline.png)", ""]
    (kernels, others), rows = report.ops(), []
    for case in report.cases("op"):
        own = [r for r in kernels if r["case"] == case]
        if not own:
            continue
        strongest = report.strongest(own[0])
        rows.append([case, f"{_ms(strongest['median'])} ({own[0]['speedup']['over'].removeprefix('dense ')})",
                     *(f"{_ms(r['median'])}, {r['speedup']['ratio']:.1f}x" for r in own), _crossover(own)])  # fmt: skip
    heads = [f"{100 * d:g}%" for d in sorted({r["density"] for r in kernels})]
    lines += _table(["op", "strongest dense", *heads, "sparse wins"], rows)
    lines += ["PyTorch's own sparse matrices, on the 1x1 layers:", ""]
    return lines + _table(["op", "how", "time", "over strongest dense"],
                          [[r["case"], r["contender"], _ms(r["median"]), _times(r["speedup"])] for r in others])  # fmt: skip


def _swept(row: Row, by: str) -> str:
    batch, _, *sides = row["shape"]
    return {"size": "x".join(map(str, sides)), "batch": str(batch), "threads": str(row["threads"])}[by]


def _scale(report: Report) -> list[str]:
    lines = ["## By size, batch and threads", ""]
    for by, title in (("size", "image"), ("batch", "batch of 64x64"), ("threads", "threads, 128x128")):
        swept = [results.sweep(report.rows, network, by) for network in ("small", "full-size")]
        rows = [[r["network"], _swept(r, by), _ms(r["median"]),
                 f"{_ms(report.strongest(r)['median'])} ({r['speedup']['over'].removeprefix('dense ')})", _times(r["speedup"])]
                for found in swept if len(found) > 1 for r in found]  # fmt: skip
        lines += _table(["network", title, "sparse", "strongest dense", "over strongest dense"], rows)
    lines += [
        "![memory against size](memory.png)",
        "",
        "A process of its own each, PyTorch included; the first image:",
        "",
    ]
    rows = [
        [r["network"], r["contender"], f"{r['pixels'] / 1e6:.2f} Mpx",
         *([_ms(r["first"]), f"{r['peak_bytes'] / 1e9:.2f} GB"] if "peak_bytes" in r else ["-", r["left_out"]])]
        for r in report.section("memory")
    ]  # fmt: skip
    return lines + _table(["network", "", "image", "time", "peak memory"], rows)


def _processes(report: Report) -> list[str]:
    lines = [
        "## From a cold start",
        "",
        "Seconds until the first 256x256 image is restored, in a new process (the full-size network is drawn, not loaded):",
        "",
    ]
    rows = [
        [r["network"], r["contender"],
         *(["-" if k == "load" and r["network"] == "full-size" else _ms(r[k]) for k in ("import", "load", "build", "first", "second")]
           if "import" in r else ["-"] * 4 + [r["left_out"]])]
        for r in report.section("cold")
    ]  # fmt: skip
    lines += _table(["network", "", "import", "load", "build", "first image", "second image"], rows)
    lines += ["Instructions for a 64x64 image, on one thread, counted by callgrind on AVX2:", ""]
    rows = [[r["network"], r["contender"], f"{r['instructions'] / 1e9:.3f} G" if "instructions" in r else r["left_out"]]
            for r in report.section("instructions")]  # fmt: skip
    return lines + _table(["network", "", "instructions"], rows)


def _profile(report: Report) -> list[str]:
    lines = ["## Where the time goes", "", "![time by stage](stages.png)", ""]
    for row in report.section("profile"):
        reached = row["limit"] / row["sparse"]
        lines.append(
            f"- {row['network']}: {_ms(row['sparse'])} of sparse steps, {reached:.0%} of what the measured peaks"
            f" ({row['gflops_peak']:.0f} GFLOP/s, {row['gbytes_peak']:.0f} GB/s) allow"
        )
    return [*lines, ""]


def _plots(report: Report, folder: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    def save(name: str, draw: Any, columns: int = 1) -> None:
        figure = Figure(figsize=(6 * columns, 4.5), layout="constrained")
        draw(*np.atleast_1d(figure.subplots(1, columns)))
        write_whole(folder / f"{name}.png", lambda path: figure.savefig(path, dpi=110, format="png"))

    def density(axes: Any) -> None:
        rows = report.timed("density")
        for criterion in ("layerwise", "uneven"):
            own = sorted(
                (r for r in rows if r["criterion"] == criterion or r["density"] == 1),
                key=lambda r: r["density"],
            )
            x = [100 * r["density"] for r in own]
            axes.plot(x, [1e3 * r["median"] for r in own], "o-", label=f"sparse, {criterion} (20% to 80%)")
            axes.fill_between(x, *([1e3 * r[k] for r in own] for k in ("p20", "p80")), alpha=0.2)
            if found := crossover(own):
                axes.axvline(100 * found, color="grey", linestyle=":")
        for r in report.section("density"):
            if r["contender"] in DENSE and "median" in r and r["contender"] != STOCK:
                axes.axhline(1e3 * r["median"], linewidth=0.8, linestyle="--", color=f"C{2 + list(DENSE).index(r['contender'])}",
                             label=r["contender"])  # fmt: skip
        axes.set(
            xlabel="weights kept, %", ylabel="ms, full-size network at 128x128", xscale="log", yscale="log"
        )
        axes.legend(fontsize=7)

    def roofline(axes: Any) -> None:
        flops, moved = (
            max(r[peak] for r in report.section("profile")) for peak in ("gflops_peak", "gbytes_peak")
        )
        x = np.logspace(-2, 3, 100)
        axes.plot(x, np.minimum(flops, x * moved), "k-", label="measured peaks")
        rows = [r for r in report.timed("op") if "macs" in r]
        for i, op in enumerate(dict.fromkeys(r["op"] for r in rows)):
            own = [r for r in rows if r["op"] == op]
            axes.plot([2 * r["macs"] / r["bytes"] for r in own], [2e-9 * r["macs"] / r["median"] for r in own], "o", label=op,
                      color=f"C{i}", markersize=4)  # fmt: skip
        axes.set(
            xlabel="operations per byte that must move",
            ylabel="GFLOP/s by surviving weights",
            xscale="log",
            yscale="log",
        )
        axes.legend(fontsize=7)

    def stages(*both: Any) -> None:
        for axes, row in zip(both, report.section("profile"), strict=True):
            for column, kind in enumerate(("dense_stages", "sparse_stages")):
                bottom = 0.0
                named = row["dense_stages"] | row["sparse_stages"]
                colours = dict(zip(named, colormaps["turbo"](np.linspace(0, 1, len(named))), strict=True))
                for stage, seconds in row[kind].items():
                    axes.bar(
                        column,
                        1e3 * seconds,
                        bottom=bottom,
                        color=colours[stage],
                        label=None if column else stage,
                    )
                    bottom += 1e3 * seconds
            axes.set_xticks((0, 1), ("dense channels_last", "sparse"))
            axes.set(ylabel="ms", title=f"{row['network']}, 256x256")
        both[-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))

    def memory(axes: Any) -> None:
        rows = [r for r in report.section("memory") if "peak_bytes" in r]
        for key in dict.fromkeys((r["network"], r["contender"]) for r in rows):
            own = [r for r in rows if (r["network"], r["contender"]) == key]
            axes.plot(
                [r["pixels"] / 1e6 for r in own],
                [r["peak_bytes"] / 1e9 for r in own],
                "o-",
                label=", ".join(key),
            )
        axes.set(xlabel="megapixels", ylabel="GB, peak of the process", xscale="log", yscale="log")
        axes.legend(fontsize=7)

    for part, draw, columns in (
        (_densities, density, 1),
        (_ops, roofline, 1),
        (_profile, stages, len(report.section("profile"))),
        (_scale, memory, 1),
    ):
        if report.has(part):
            save(draw.__name__, draw, columns)


def _elsewhere(report: Report) -> list[str]:
    return scaling.section(report.rows)


PARTS: dict[Callable[[Report], list[str]], tuple[str, ...]] = {
    _network: ("network",),
    _densities: ("density",),
    _ops: ("op", "profile"),
    _scale: ("size", "batch", "threads", "memory"),
    _processes: ("cold", "instructions"),
    _profile: ("profile",),
    _elsewhere: ("size", "threads"),
}  # and the sections of the results that each needs


def _method(report: Report, right: str) -> list[str]:
    """Return how the figures of a page were measured."""
    by_round = report.by_round
    within = " or within a tenth of it" if by_round else ""
    leaves = [
        "- A dense run leaves the comparison when it takes more than 1.5 times as long as the strongest in the first rounds.",
    ]
    return [
        "- Times are medians. All contenders of a case run in turns within one process.",
        "- A ratio is over the strongest dense run of the same process:"
        f" {'the median of the ratios by round' if by_round else 'the ratio of the medians'}, with its 95% interval"
        " (bootstrap over rounds; full-size networks have few: `runs` in full.jsonl).",
        "- Dense runs in bfloat16 count too. Their results are off by 0.01; the sparse kernels compute in float32. The ratio"
        " over the strongest run in float32 is one of medians.",
        "- By density, size, batch and threads, three dense runs take part: PyTorch by default, what was strongest at"
        f" 256x256{within}, and the strongest that is not compiled.",
        *(leaves if by_round else []),
        f"- A contender with a wrong result is not timed ({right}).",
        "- Weights are random, but for `small`.",
        "",
    ]


def markdown(report: Report) -> str:
    """The page."""
    m = report.machine
    left_out = sorted(
        {(r["contender"], r["left_out"]) for r in report.rows if "left_out" in r and "case" in r}
    )
    wrong = [r for r in report.rows if "differs" in r.get("left_out", "")]
    lines = [
        f"# Dense against sparse, {m['isa']}",
        "",
        NOT_SHOWN,
        "",
        f"{m['processor']}, {m['isa']}, {m['threads']} threads, torch {m['torch']}, Python {m['python']}, allocator"
        f" {m['allocator']}; {min(r['date'] for r in report.rows)} to {max(r['date'] for r in report.rows)}."
        " `make bench` writes this page; some parts were measured again alone. `full.jsonl` holds the figures, each row"
        " with its date.",
        "",
        *_method(report, "all were right" if not wrong else f"{len(wrong)} were wrong"),
        *(line for remark in report.remarks for line in (remark, "")),
        *(line for part in PARTS if report.has(part) for line in part(report)),
        "## What could not be compared",
        "",
        *_table(["contender", "why"], [list(pair) for pair in left_out]),
    ]
    return "\n".join(lines)


def html(page: str) -> str:
    """The page as a file for a browser."""
    from markdown_it import MarkdownIt  # of rich's

    style = "body{font:15px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}td,th{padding:.2em .7em;text-align:left}img{max-width:100%}"
    body = MarkdownIt("commonmark").enable("table").render(page)
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Dense against sparse</title><style>{style}</style>{body}</html>'


def _against(report: Report, row: Row) -> str:
    """Return a sparse time, the strongest dense one and the ratio, as one cell."""
    strongest, name = report.strongest(row), row["speedup"]["over"].removeprefix("dense ")
    ratio = row["speedup"]["ratio"]
    return f"**{ratio:.1f}x**: {_ms(row['median'])}, dense {_ms(strongest['median'])} ({name})"


def readme(reports: list[Report]) -> str:
    """Return the README's table: each pruned network, with one column per processor."""
    machines = [report.machine for report in reports]
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for i, report in enumerate(reports):
        for row in report.timed("network"):
            if row["density"] < 1:
                name = (
                    row["case"].split()[0],
                    f"{row['density']:.1%} {row['criterion']}".removesuffix(" small"),
                )
                cells.setdefault(name, {})[i] = _against(report, row)
    head = [
        "network",
        "weights kept",
        *(f"{m['processor']} ({m['isa']}), {m['threads']} threads, {m['date'][:10]}" for m in machines),
    ]
    rows = [[*name, *(of.get(i, "-") for i in range(len(reports)))] for name, of in cells.items()]
    remarks: dict[str, list[str]] = {}
    for report in reports:
        for remark in report.remarks:
            remarks.setdefault(remark, []).append(report.machine["isa"])
    notes = [
        remark if len(where) == len(reports) else f"({', '.join(where)}) {remark}"
        for remark, where in remarks.items()
    ]
    return "\n".join([*_table(head, rows), *notes, ""])


def performance(reports: list[Report]) -> str:
    """Return the part of `docs/performance.md`: the networks on every machine, and what else was found there."""
    lines = [
        "No GPU was measured. The weights are random, but for `small`. Dense runs in bfloat16 count where a processor has"
        " it, though their results are off by 0.01; the sparse kernels compute in float32. For the full-size network,"
        " XNNPACK and `torch.compile` in channels_last are left out: they take minutes to build.",
        "",
    ]
    for report in reports:
        m = report.machine
        rows = [
            [
                r["case"].split()[0],
                f"{r['density']:.1%} {r['criterion']}",
                f"{r['macs'] / 1e9:.1f} G",
                f"{_ms(report.strongest(r)['median'])} ({r['speedup']['over'].removeprefix('dense ')})",
                _ms(r["median"]),
                f"**{r['speedup']['ratio']:.1f}x**",
                report.over_float32(r),
                f"{r['over_default']['ratio']:.1f}x",
            ]
            for r in report.timed("network")
        ]
        head = [
            "network",
            "weights kept",
            "multiply-adds",
            "strongest dense",
            "sparse",
            "over it",
            "over float32",
        ]
        lines += [
            f"### {m['processor']} ({m['isa']})",
            "",
            f"256x256 pixels, {m['threads']} threads, torch {m['torch']}, {m['date'][:10]}."
            f"{''.join(f' {remark}' for remark in report.remarks)}",
            "",
            *_table([*head, "over PyTorch by default"], rows),
            *(f"- {line}" for line in _findings(report)),
            "",
            f"Every dense run and the plots are in `benchmarks/results/{m['isa']}/report.md`.",
            "",
        ]
    return "\n".join(lines)


def _put(path: Path, part: str) -> None:
    """Put a part between the two comments of a page."""
    part = f"<!-- bench: written by benchmarks/report.py -->\n\n{part}\n<!-- /bench -->"
    page = re.sub(r"<!-- bench.*<!-- /bench -->", lambda _: part, path.read_text(), flags=re.DOTALL)
    write_whole(path, page.encode())


def _findings(report: Report) -> list[str]:
    found = []
    if report.section("density"):
        for criterion in ("layerwise", "uneven"):
            own = [r for r in report.timed("density") if r["criterion"] == criterion or r["density"] == 1]
            found.append(f"full-size network at 128x128, {criterion}: sparse wins {_crossover(own)}")
    if report.section("op"):
        kernels, others = report.ops()
        own = {(r["case"], r["density"]): r["median"] for r in kernels}
        lost: dict[str, list[str]] = {}
        for r in kernels:
            if r["speedup"]["ratio"] < 1:
                lost.setdefault(r["case"], []).append(
                    f"at {100 * r['density']:g}% ({r['speedup']['ratio']:.2f}x)"
                )
        for r in others:
            if r["median"] < (ours := own.get((r["case"], r["density"]), 0)):
                lost.setdefault(r["case"], []).append(f"to {r['contender']} ({r['median'] / ours:.2f}x)")
        losing = "; ".join(f"{case} {', '.join(how)}" for case, how in lost.items())
        found.append(f"ops that lose: {losing or 'none'}")
    megapixel = report.section("memory", network="small", pixels=1024**2)
    if megapixel and all("peak_bytes" in r for r in megapixel):
        memory = (f"{r['peak_bytes'] / 1e9:.2f} GB ({r['contender']})" for r in megapixel)
        found.append(
            f"peak memory of a process that restores 1024x1024 pixels (`small`): {', '.join(memory)}"
        )
    return found + (scaling.findings(report.rows) if report.section("size") else [])


def main() -> None:
    reports = []
    for path in sorted(results.FOLDER.glob("*/full.jsonl")):
        report = Report(results.read(path))
        reports.append(report)
        _plots(report, path.parent)
        page = markdown(report)
        write_whole(path.with_name("report.md"), page.encode())
        write_whole(path.with_name("report.html"), html(page).encode())
        print(path.with_name("report.html"))
    _put(README, readme(reports))
    _put(PERFORMANCE, performance(reports))


if __name__ == "__main__":
    main()
