"""Write the pages about the results: Markdown, HTML and plots per processor, and tables of README and docs.

    python -m benchmarks.suite.report

reads benchmarks/results/*/full.jsonl and writes everything again. `README.md` gets one short table,
`docs/performance.md` a longer part. Both stand between the same two comments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.suite import plots, results, scaling
from benchmarks.suite.machine_results import MachineResults, crossover
from benchmarks.suite.rows import Ratio, Row
from mirl_sparse.files import write_whole
from mirl_sparse.performance.peers import DENSE, EAGER

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
NOT_SHOWN = (
    "This page shows one machine and one network, PromptIR;"
    " [networks.md](../../studies/networks.md) has others. No GPU was measured."
)


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.{0 if seconds >= 0.1 else 1}f} ms"


def _times(ratio: Ratio) -> str:
    return f"**{ratio['ratio']:.2f}x** ({ratio['low']:.2f}-{ratio['high']:.2f})"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def _network_name(row: Row) -> str:
    return str(row["case"].split()[0])


def _density(row: Row) -> str:
    return f"{row['density']:.1%}"


def _macs(row: Row, digits: int = 2) -> str:
    return f"{row['macs'] / 1e9:.{digits}f} G"


def _compared_with(row: Row) -> str:
    """Return the short name of the dense contender that a sparse row is compared with."""
    return str(row["speedup"]["over"].removeprefix("dense "))


def _strongest(measured: MachineResults, row: Row) -> str:
    """Return the time and the name of the dense contender that a sparse row is compared with."""
    return f"{_ms(measured.strongest(row)['median'])} ({_compared_with(row)})"


def _wins(rows: list[Row]) -> str:
    """Return at which densities a sparse contender wins."""
    doubtful = [f"{100 * r['density']:g}%" for r in rows if r["speedup"]["low"] < 1 <= r["speedup"]["ratio"]]
    doubt = f" (within the noise at {', '.join(doubtful)})" if doubtful else ""
    if density := crossover(rows):
        return f"below {density:.0%}{doubt}"
    return ("at every density" if all(r["speedup"]["ratio"] >= 1 for r in rows) else "at no density") + doubt


def _sparse_network(measured: MachineResults, row: Row) -> list[str]:
    return [
        _network_name(row),
        f"{row['criterion']} {_density(row)}",
        _macs(row),
        _ms(row["median"]),
        _strongest(measured, row),
        _times(row["speedup"]),
        f"{measured.over_float32(row):.1f}x",
        f"{row['over_default']['ratio']:.1f}x",
        f"{row['difference']:.0e}",
    ]


def _dense_network(row: Row) -> list[str]:
    names = [_network_name(row), row["contender"].removeprefix("dense ")]
    if "median" not in row:
        return [*names, "-", "-", row["left_out"]]
    first_call = "-" if row["contender"] in EAGER or "times" not in row else _ms(row["first_call"])
    return [*names, _ms(row["median"]), f"{_ms(row['p20'])} - {_ms(row['p80'])}", first_call]


def _network(measured: MachineResults) -> list[str]:
    lines = ["## The network at 256x256", ""]
    head = ["network", "weights kept", "multiply-adds", "sparse", "strongest dense", "over strongest dense"]
    head += ["over strongest in float32", "over PyTorch by default", "off by"]
    lines += _table(head, [_sparse_network(measured, r) for r in measured.timed("network")])
    lines += [
        "Every dense run (medians, 20% and 80% percentiles), and how long those that compile or pack take"
        " until their first result:",
        "",
    ]
    dense = [_dense_network(r) for r in measured.section("network") if r["contender"] in DENSE]
    lines += _table(["network", "dense", "median", "20% - 80%", "first result"], dense)
    for case in measured.cases("network"):
        run = {r["contender"] for r in measured.section("network", case=case)}
        if missing := [name.removeprefix("dense ") for name in DENSE if name not in run]:
            lines += [f"Not among the dense runs of {case}: {', '.join(missing)}.", ""]
    return lines


def _densities(measured: MachineResults) -> list[str]:
    lines = ["## By density", "", "![latency against density](density.png)", ""]
    for criterion in ("layerwise", "uneven"):
        lines.append(f"- {criterion}: sparse wins {_wins(measured.by_density(criterion))}")
    rows = [
        [r["criterion"], _density(r), _macs(r), _ms(r["median"]), _times(r["speedup"])]
        for r in measured.timed("density")
    ]
    head = ["criterion", "weights kept", "multiply-adds", "sparse", "over strongest dense"]
    return [*lines, "", *_table(head, rows)]


def _ops(measured: MachineResults) -> list[str]:
    lines = ["## Op by op", "", "![roofline](roofline.png)", ""]
    (kernels, others), rows = measured.ops(), []
    for case in measured.cases("op"):
        of_case = [r for r in kernels if r["case"] == case]
        if of_case:
            times = [f"{_ms(r['median'])}, {r['speedup']['ratio']:.1f}x" for r in of_case]
            rows.append([case, _strongest(measured, of_case[0]), *times, _wins(of_case)])
    densities = [f"{100 * d:g}%" for d in sorted({r["density"] for r in kernels})]
    lines += _table(["op", "strongest dense", *densities, "sparse wins"], rows)
    lines += ["PyTorch's own sparse matrices, on the 1x1 layers:", ""]
    rows = [[r["case"], r["contender"], _ms(r["median"]), _times(r["speedup"])] for r in others]
    return lines + _table(["op", "how", "time", "over strongest dense"], rows)


def _swept_value(row: Row, by: str) -> str:
    batch, _, *sides = row["shape"]
    return {"size": "x".join(map(str, sides)), "batch": str(batch), "threads": str(row["threads"])}[by]


def _scale(measured: MachineResults) -> list[str]:
    lines = ["## By size, batch and threads", ""]
    for by, title in (("size", "image"), ("batch", "batch of 64x64"), ("threads", "threads, 128x128")):
        sweeps = [results.sweep(measured.rows, network, by) for network in ("small", "full-size")]
        rows = [
            [
                r["network"],
                _swept_value(r, by),
                _ms(r["median"]),
                _strongest(measured, r),
                _times(r["speedup"]),
            ]
            for sweep in sweeps
            if len(sweep) > 1
            for r in sweep
        ]
        lines += _table(["network", title, "sparse", "strongest dense", "over strongest dense"], rows)
    lines += [
        "![memory against size](memory.png)",
        "",
        "A process of its own each, PyTorch included; the first image:",
        "",
    ]
    rows = [_memory_cells(r) for r in measured.section("memory")]
    return lines + _table(["network", "", "image", "time", "peak memory"], rows)


def _memory_cells(row: Row) -> list[str]:
    cells = [row["network"], row["contender"], f"{row['pixels'] / 1e6:.2f} Mpx"]
    if "peak_bytes" not in row:
        return [*cells, "-", row["left_out"]]
    return [*cells, _ms(row["first"]), f"{row['peak_bytes'] / 1e9:.2f} GB"]


def _cold_start_cells(row: Row) -> list[str]:
    names = [row["network"], row["contender"]]
    if "import" not in row:
        return [*names, *["-"] * 4, row["left_out"]]
    cells = {key: _ms(row[key]) for key in ("import", "load", "build", "first", "second")}
    if row["network"] == "full-size":
        cells["load"] = "-"
    return [*names, *cells.values()]


def _processes(measured: MachineResults) -> list[str]:
    lines = [
        "## From a cold start",
        "",
        "Seconds until the first 256x256 image is restored, in a new process (the full-size network is"
        " drawn, not loaded):",
        "",
    ]
    head = ["network", "", "import", "load", "build", "first image", "second image"]
    lines += _table(head, [_cold_start_cells(r) for r in measured.section("cold")])
    lines += ["Instructions for a 64x64 image, on one thread, counted by callgrind on AVX2:", ""]
    rows = []
    for r in measured.section("instructions"):
        count = f"{r['instructions'] / 1e9:.3f} G" if "instructions" in r else r["left_out"]
        rows.append([r["network"], r["contender"], count])
    return lines + _table(["network", "", "instructions"], rows)


def _profile(measured: MachineResults) -> list[str]:
    lines = ["## Where the time goes", "", "![time by stage](stages.png)", ""]
    for row in measured.section("profile"):
        reached = row["limit"] / row["sparse"]
        lines.append(
            f"- {row['network']}: {_ms(row['sparse'])} of sparse steps, {reached:.0%} of what the measured"
            f" peaks ({row['gflops_peak']:.0f} GFLOP/s, {row['gbytes_peak']:.0f} GB/s) allow"
        )
    return [*lines, ""]


def _elsewhere(measured: MachineResults) -> list[str]:
    return scaling.section(measured.rows)


# The parts of a page, and the sections of the results that each needs.
PARTS: dict[Callable[[MachineResults], list[str]], tuple[str, ...]] = {
    _network: ("network",),
    _densities: ("density",),
    _ops: ("op", "profile"),
    _scale: ("size", "batch", "threads", "memory"),
    _processes: ("cold", "instructions"),
    _profile: ("profile",),
    _elsewhere: ("size", "threads"),
}


def _method(measured: MachineResults, verdict: str) -> list[str]:
    """Return how the figures of a page were measured."""
    by_round = measured.by_round
    within = " or within a tenth of it" if by_round else ""
    leaves = [
        "- A dense run leaves the comparison when it takes more than 1.5 times as long as the strongest in"
        " the first rounds.",
    ]
    return [
        "- Times are medians. All contenders of a case run in turns within one process.",
        "- A ratio is over the strongest dense run of the same process:"
        f" {'the median of the ratios by round' if by_round else 'the ratio of the medians'}, with its 95%"
        " interval (bootstrap over rounds; full-size networks have few: `runs` in full.jsonl).",
        "- Dense runs in bfloat16 count too. Their results are off by 0.01; the sparse kernels compute in"
        " float32. The ratio over the strongest run in float32 is one of medians.",
        "- By density, size, batch and threads, three dense runs take part: PyTorch by default, what was"
        f" strongest at 256x256{within}, and the strongest that is not compiled.",
        *(leaves if by_round else []),
        f"- A contender with a wrong result is not timed ({verdict}).",
        "- Weights are random, but for `small`.",
        "",
    ]


def markdown(measured: MachineResults) -> str:
    """Return the page about a machine in Markdown."""
    m, rows = measured.machine, measured.rows
    left_out = sorted({(r["contender"], r["left_out"]) for r in rows if "left_out" in r and "case" in r})
    wrong = [r for r in rows if "differs" in r.get("left_out", "")]
    lines = [
        f"# Dense against sparse, {m['isa']}",
        "",
        NOT_SHOWN,
        "",
        f"{m['processor']}, {m['isa']}, {m['threads']} threads, torch {m['torch']}, Python {m['python']},"
        f" allocator {m['allocator']}; {min(r['date'] for r in rows)} to {max(r['date'] for r in rows)}."
        " `make bench` writes this page; some parts were measured again alone. `full.jsonl` holds the"
        " figures, each row with its date.",
        "",
        *_method(measured, "all were right" if not wrong else f"{len(wrong)} were wrong"),
        *(line for remark in measured.remarks for line in (remark, "")),
        *(line for part, needs in PARTS.items() if measured.has_sections(*needs) for line in part(measured)),
        "## What could not be compared",
        "",
        *_table(["contender", "why"], [list(pair) for pair in left_out]),
    ]
    return "\n".join(lines)


_STYLE = (
    "body{font:15px sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "td,th{padding:.2em .7em;text-align:left}"
    "img{max-width:100%}"
)


def html(page: str) -> str:
    """Return a page in Markdown as a file for a browser."""
    from markdown_it import MarkdownIt  # a dependency of rich

    body = MarkdownIt("commonmark").enable("table").render(page)
    head = f'<meta charset="utf-8"><title>Dense against sparse</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}{body}</html>'


def _against(measured: MachineResults, row: Row) -> str:
    """Return a sparse time, the strongest dense one and the ratio, as one cell."""
    dense = _ms(measured.strongest(row)["median"])
    return f"**{row['speedup']['ratio']:.1f}x**: {_ms(row['median'])}, dense {dense} ({_compared_with(row)})"


def _name(machine: Row) -> str:
    return f"{machine['processor']} ({machine['isa']})"


def readme(machines: list[MachineResults]) -> str:
    """Return the README's table: each pruned network, with one column per processor."""
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for i, measured in enumerate(machines):
        for row in measured.timed("network"):
            if row["density"] < 1:
                weights = f"{_density(row)} {row['criterion']}".removesuffix(" small")
                cells.setdefault((_network_name(row), weights), {})[i] = _against(measured, row)
    head = ["network", "weights kept"]
    for m in (measured.machine for measured in machines):
        head.append(f"{_name(m)}, {m['threads']} threads, {m['date'][:10]}")
    rows = [
        [*names, *(by_machine.get(i, "-") for i in range(len(machines)))]
        for names, by_machine in cells.items()
    ]
    remarks: dict[str, list[str]] = {}
    for measured in machines:
        for remark in measured.remarks:
            remarks.setdefault(remark, []).append(_name(measured.machine))
    notes = [
        remark if len(names) == len(machines) else f"{', '.join(names)}: {remark}"
        for remark, names in remarks.items()
    ]
    return "\n".join([*_table(head, rows), *notes, ""])


def performance(machines: list[MachineResults]) -> str:
    """Return the part of `docs/performance.md`: networks and findings on every machine."""
    lines = [
        "No GPU was measured. The weights are random, but for `small`. Dense runs in bfloat16 count where a"
        " processor has it, though their results are off by 0.01; the sparse kernels compute in float32."
        " For the full-size network, XNNPACK and `torch.compile` in channels_last are left out: they take"
        " minutes to build.",
        "",
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
    for measured in machines:
        m = measured.machine
        lines += [
            f"### {_name(m)}",
            "",
            f"256x256 pixels, {m['threads']} threads, torch {m['torch']}, {m['date'][:10]}."
            f"{''.join(f' {remark}' for remark in measured.remarks)}",
            "",
            *_table(
                [*head, "over PyTorch by default"],
                [_performance_cells(measured, r) for r in measured.timed("network")],
            ),
            *(f"- {line}" for line in _findings(measured)),
            "",
            "Every dense run and the plots are in"
            f" `benchmarks/results/{results.folder_name(m['isa'], m['processor'])}/report.md`.",
            "",
        ]
    return "\n".join(lines)


def _performance_cells(measured: MachineResults, row: Row) -> list[str]:
    return [
        _network_name(row),
        f"{_density(row)} {row['criterion']}",
        _macs(row, 1),
        _strongest(measured, row),
        _ms(row["median"]),
        f"**{row['speedup']['ratio']:.1f}x**",
        f"{measured.over_float32(row):.1f}x",
        f"{row['over_default']['ratio']:.1f}x",
    ]


def _put(path: Path, part: str) -> None:
    """Put a part between the two comments of a page."""
    part = f"<!-- bench: written by benchmarks/suite/report.py -->\n\n{part}\n<!-- /bench -->"
    page = re.sub(r"<!-- bench.*<!-- /bench -->", lambda _: part, path.read_text(), flags=re.DOTALL)
    write_whole(path, page.encode())


def _findings(measured: MachineResults) -> list[str]:
    """Return what was found beside the networks at 256x256, one line each."""
    lines = []
    if measured.section("density"):
        for criterion in ("layerwise", "uneven"):
            wins = _wins(measured.by_density(criterion))
            lines.append(f"full-size network at 128x128, {criterion}: sparse wins {wins}")
    if measured.section("op"):
        losses = "; ".join(f"{case} {', '.join(how)}" for case, how in _lost_ops(measured).items())
        lines.append(f"ops that lose: {losses or 'none'}")
    megapixel = measured.section("memory", network="small", pixels=1024**2)
    if megapixel and all("peak_bytes" in r for r in megapixel):
        memory = (f"{r['peak_bytes'] / 1e9:.2f} GB ({r['contender']})" for r in megapixel)
        lines.append(
            f"peak memory of a process that restores 1024x1024 pixels (`small`): {', '.join(memory)}"
        )
    return lines + (scaling.findings(measured.rows) if measured.section("size") else [])


def _lost_ops(measured: MachineResults) -> dict[str, list[str]]:
    """Return, by case, where an op is slower than dense or than PyTorch's sparse matrices."""
    kernels, others = measured.ops()
    medians = {(r["case"], r["density"]): r["median"] for r in kernels}
    lost: dict[str, list[str]] = {}
    for r in kernels:
        ratio = r["speedup"]["ratio"]
        if ratio < 1:
            lost.setdefault(r["case"], []).append(f"at {100 * r['density']:g}% ({ratio:.2f}x)")
    for r in others:
        if r["median"] < (kernel := medians.get((r["case"], r["density"]), 0)):
            lost.setdefault(r["case"], []).append(f"to {r['contender']} ({r['median'] / kernel:.2f}x)")
    return lost


def main() -> None:
    machines = []
    for path in sorted(results.FOLDER.glob("*/full.jsonl")):
        measured = MachineResults(results.read(path))
        machines.append(measured)
        plots.save_plots(measured, path.parent)
        page = markdown(measured)
        write_whole(path.with_name("report.md"), page.encode())
        write_whole(path.with_name("report.html"), html(page).encode())
        print(path.with_name("report.html"))
    _put(README, readme(machines))
    _put(PERFORMANCE, performance(machines))


if __name__ == "__main__":
    main()
