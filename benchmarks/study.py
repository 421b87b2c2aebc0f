"""Does a ticket of the tiny network hold what lottery tickets promise, and what is each criterion worth on a clock?

    python benchmarks/study.py train DATA [ROW ...] [--seed N]    trains and scores what is missing, in
    runs/study (hours) python benchmarks/study.py classical DATA                     scores what scikit-image
    and BM3D offer (BM3D for an hour) python benchmarks/study.py clock                              times all
    that is not timed yet; nothing else may run python benchmarks/study.py report
    writes study.md and study.png

`classical` wants `pip install -e '.[classical]'`. DATA holds train/ and test/ as training/configs/small.yaml
and `mirl-sparse eval` expect them. Every row is one of `ROWS`, trained alone by naming it; stop it whenever
you like. Scores are kept as JSON lines in benchmarks/study.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from math import nan
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from results import write
from safetensors.torch import load_file
from skimage import restoration
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio

from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.performance.prices import cost_model
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.tickets import load_network
from mirl_training.data.degradations import add_noise
from mirl_training.evaluation import Pixels, standard_sets
from mirl_training.pruning import Mask, prune
from mirl_training.pruning.latency import seconds
from mirl_training.runs import Run, RunConfig, load_config, read_log, save_weights

HERE = Path(__file__).parent
RESULTS = HERE / "study.jsonl"
WORK = Path("runs/study")
TINY = load_config(HERE.parent / "training/configs/tiny.yaml")
STEPS, REWIND = 800, 80  # of every round; the early step that tickets are rewound to
EXEMPT = ("patch_embed.*", "output.*", "*linear_layer*")
RATE, ROUNDS = 0.2, 15  # MIR-L's
TENTH = 10  # the round that leaves 10.7%
USUAL = "gradual global 10%"  # what other rows are compared with
GRADUAL = {"rounds": 4, "round_steps": 200, "final_steps": STEPS, "rewind": "none"}
SIDE, RUNS, CLASSICAL_RUNS = 256, 21, 5


def config(seed: int, **pruning: Any) -> RunConfig:
    """The tiny network, trained for STEPS on all tasks, pruned as given."""
    values = TINY.to_dict()
    values["data"]["tasks"] = {"noise15": 1, "noise25": 1, "noise50": 1, "rain": 2, "haze": 1, "jpeg": 1}
    values["training"] |= {
        "steps": STEPS, "loss": "psnr", "optimizer": "muon", "learning_rate": 2e-3, "clip_norm": 100, "seed": seed,
        "validate_every": STEPS, "save_every": 200,
    }  # fmt: skip
    values["pruning"] = {"rounds": 0, "exempt": EXEMPT} | pruning
    return RunConfig(**values)


def trained(name: str, settings: RunConfig, data: Path, before: Path | None = None) -> Path:
    """The folder of a run that is trained to its end; its first rounds are all those of another run, if given."""
    folder = WORK / f"{name}-{settings.digest}"
    if (folder / f"round_{settings.pruning.rounds:02d}").exists():
        return folder
    if before is not None and not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for kept in [*before.glob("*.safetensors"), before / "log.jsonl", *before.glob("round_??")]:
            (shutil.copytree if kept.is_dir() else shutil.copy)(kept, part / kept.name)
        part.rename(folder)
    Run(settings, data, folder, lambda report: None).go()
    return folder


def dense(seed: int, data: Path) -> Path:
    return trained("dense", config(seed, rewind=REWIND), data)


def imp(seed: int, data: Path, rounds: int = TENTH, rewind: str | int = REWIND) -> Path:
    settings = config(seed, criterion="global", rate=RATE, rounds=rounds, rewind=rewind)
    return trained("imp", settings, data, dense(seed, data) if rounds == TENTH else imp(seed, data))


def from_mask(name: str, seed: int, data: Path, mask: Mask, weights: dict[str, torch.Tensor]) -> Path:
    """A training of the weights that a mask keeps, alone."""
    network = PromptIR(TINY.network)
    network.load_state_dict(weights)
    mask.apply(network)
    start = WORK / f"{name}-{seed}.safetensors"
    save_weights(start, network.state_dict(), network)
    values = config(seed).to_dict() | {"network": None, "start": str(start)}
    return trained(name, RunConfig(**values), data) / "round_00"


def control(seed: int, data: Path, shuffled: bool) -> Path:
    """The ticket at 10.7% with its mask shuffled within every layer, or with the initial weights of another seed."""
    base = imp(seed, data)
    mask = Mask(load_file(base / f"round_{TENTH:02d}/mask.safetensors"))
    if shuffled:
        generator = torch.Generator().manual_seed(seed)
        mask = Mask({
            n: keep.flatten()[torch.randperm(keep.numel(), generator=generator)].view_as(keep)
            for n, keep in mask.alive.items()
        })  # fmt: skip
        return from_mask("random", seed, data, mask, load_file(base / "rewind.safetensors"))
    torch.manual_seed(1000 + seed)
    return from_mask("reinit", seed, data, mask, PromptIR(TINY.network).state_dict())


def gradual(seed: int, data: Path, criterion: str, density: float = 0.1, **more: Any) -> Path:
    settings = config(seed, criterion=criterion, **GRADUAL, **({"rate": 1 - density ** (1 / 4)} | more))
    return trained(f"gradual-{criterion}", settings, data, dense(seed, data)) / "round_04"


def as_fast_as_global(seed: int, data: Path, criterion: str, faster: float = 1) -> Path:
    """The gradual ticket of a criterion that takes as long as the global one at 10%, or less, by the cost model."""
    model, first = cost_model(), load_network(gradual(seed, data, "global") / "weights.safetensors")
    full, budget = Mask.full(first), seconds(first, Mask.of(first), model) / faster
    if criterion == "latency":
        return gradual(
            seed, data, "latency", speedup=round(seconds(first, full, model) / budget, 2), rate=RATE
        )
    trained_dense = load_network(dense(seed, data) / "round_00/weights.safetensors")
    low, high = 0.01, 0.9
    for _ in range(12):
        middle = (low + high) / 2
        mask = prune(trained_dense, full, middle, criterion, EXEMPT)
        low, high = (middle, high) if seconds(trained_dense, mask, model) < budget else (low, middle)
    return gradual(seed, data, criterion, round(low, 3))


Row = Callable[[int, Path], Path]
Denoiser = Callable[[np.ndarray], np.ndarray]
ROWS: dict[str, Row] = {
    "dense": lambda seed, data: dense(seed, data) / "round_00",
    "imp 51%": lambda seed, data: imp(seed, data) / "round_03",
    "imp 21%": lambda seed, data: imp(seed, data) / "round_07",
    "imp 10.7%": lambda seed, data: imp(seed, data) / f"round_{TENTH}",
    "imp 3.5%": lambda seed, data: imp(seed, data, ROUNDS) / f"round_{ROUNDS}",
    "imp 10.7%, rewound to step 0": lambda seed, data: imp(seed, data, rewind="initial") / f"round_{TENTH}",
    "random mask 10.7%": lambda seed, data: control(seed, data, shuffled=True),
    "fresh weights 10.7%": lambda seed, data: control(seed, data, shuffled=False),
    "one-shot 10.7%": lambda seed, data: trained(
        "oneshot", config(seed, criterion="global", rate=1 - 0.8**TENTH, rounds=1, rewind=REWIND), data, dense(seed, data)
    ) / "round_01",
    USUAL: lambda seed, data: gradual(seed, data, "global"),
    "gradual layerwise 10%": lambda seed, data: gradual(seed, data, "layerwise"),
    "gradual lamp 10%": lambda seed, data: gradual(seed, data, "lamp"),
    "gradual layerwise, as fast as global": lambda seed, data: as_fast_as_global(seed, data, "layerwise"),
    "gradual lamp, as fast as global": lambda seed, data: as_fast_as_global(seed, data, "lamp"),
    "gradual latency, as fast as global": lambda seed, data: as_fast_as_global(seed, data, "latency"),
    "gradual latency, 1.5x as fast as global": lambda seed, data: as_fast_as_global(seed, data, "latency", 1.5),
    "gradual latency, 1.75x as fast as global": lambda seed, data: as_fast_as_global(seed, data, "latency", 1.75),
}  # fmt: skip


def psnr(restore: Callable[[Pixels], Pixels], data: Path, tasks: str = "") -> dict[str, float]:
    """Mean PSNR in dB per test set, of those with ``tasks`` in their name."""
    scores = {}
    for task, images in standard_sets(data / "test").items():
        if tasks not in task:
            continue
        found = [peak_signal_noise_ratio(i.clean, restore(i.degraded)) for i in images()]
        scores[task] = mean(float(s) for s in found)
    return scores


def cost(folder: Path) -> dict[str, float]:
    """Steps and hours of training that led to a round, its own and those before it."""
    last = int(folder.name.removeprefix("round_"))
    ends = {}  # a round that was stopped at its end has two lines
    for entry in read_log(folder.parent):
        if entry["round"] <= last and entry["step"] == entry["steps"]:
            ends[entry["round"]] = entry
    return {
        "steps": sum(e["steps"] for e in ends.values()),
        "hours": sum(e["steps"] * e["seconds_per_step"] / 3600 for e in ends.values()),
    }


def results() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def add(entry: dict[str, Any]) -> None:
    with RESULTS.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)


def train(data: Path, rows: list[str], seeds: list[int]) -> None:
    for seed, name in itertools.product(seeds, rows or ROWS):
        if any((r["row"], r.get("seed")) == (name, seed) for r in results()):
            continue
        folder = ROWS[name](seed, data)
        network = load_network(folder / "weights.safetensors")
        density = Mask(load_file(folder / "mask.safetensors")).density
        scores = psnr(SparseRestorer(network).restore, data)
        add(
            {
                "row": name,
                "seed": seed,
                "folder": str(folder),
                "density": density,
                **cost(folder),
                "psnr": scores,
            }
        )


def clock() -> None:
    """Time what is not timed yet, all tickets of a seed interleaved, and what needs no training with a ticket, and put that in their
    lines. A seed of which a ticket is not here is left as it is: times of different runs of this command do not compare."""
    every = results()
    for seed in {r["seed"] for r in every if "seed" in r}:
        tickets = [r for r in every if r.get("seed") == seed]
        absent = [r["row"] for r in tickets if not Path(r["folder"]).exists()]
        if absent:
            print(f"seed {seed} is not timed, since tickets of it are not in {WORK}: {', '.join(absent)}")
        elif any("ms" not in r for r in tickets):
            for entry, taken in zip(tickets, timed(tickets), strict=True):
                entry["ms"] = 1e3 * taken
    denoisers = _classical()
    untrained = [r for r in every if r["row"] in denoisers]
    tickets = [r for r in every if r["row"] == "imp 10.7%" and Path(r["folder"]).exists()]
    if not tickets:
        print(
            f"what needs no training is not timed, since no ticket of imp 10.7% is in {WORK} to compare it with"
        )
    elif any("over_ticket" not in r for r in untrained):
        _clock_classical(untrained, denoisers, tickets[0])
    write(RESULTS, every)


def _clock_classical(
    rows: list[dict[str, Any]], denoisers: dict[str, Denoiser], ticket: dict[str, Any]
) -> None:
    """What each takes per megapixel of a photo with noise of sigma 25, and how many times what the ticket does."""
    image = add_noise(astronaut().astype(np.float32) / np.float32(255), 25, np.random.default_rng(0))
    restorer = SparseRestorer(load_network(Path(ticket["folder"]) / "weights.safetensors"))
    pixels = np.rint(255 * image).astype(np.uint8)
    contenders = {"": lambda: restorer.restore(pixels)} | {
        r["row"]: partial(denoisers[r["row"]], image) for r in rows
    }
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(CLASSICAL_RUNS):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    for row in rows:
        row["seconds_per_megapixel"] = 1e6 * median(taken[row["row"]]) / (image.shape[0] * image.shape[1])
        row["over_ticket"] = median(taken[row["row"]]) / median(taken[""])


def _non_local_means(image: np.ndarray) -> np.ndarray:
    sigma = _sigma(image)
    return restoration.denoise_nl_means(
        image, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )


def _sigma(image: np.ndarray) -> float:
    return float(np.mean(restoration.estimate_sigma(image, channel_axis=-1)))


def _classical() -> dict[str, Denoiser]:
    """What restores float (H, W, 3) in [0, 1] without training; each estimates the noise itself, as it must in use."""
    found: dict[str, Denoiser] = {
        "non-local means": _non_local_means,
        "wavelet (BayesShrink)": lambda x: restoration.denoise_wavelet(
            x, method="BayesShrink", mode="soft", rescale_sigma=True, convert2ycbcr=True, channel_axis=-1
        ),
        "total variation": lambda x: restoration.denoise_tv_chambolle(x, weight=max(1e-3, 1.2 * _sigma(x)), channel_axis=-1),
    }  # fmt: skip
    try:
        import bm3d

        found["BM3D"] = lambda x: bm3d.bm3d_rgb(x, max(1e-3, _sigma(x)))
    except ImportError:
        print("BM3D: not installed (pip install -e '.[classical]'); left out")
    return found


def classical(data: Path) -> None:
    """Score what is not scored yet; BM3D on noise alone, which takes most of an hour."""
    for name, denoise in _classical().items():
        if any(r["row"] == name for r in results()):
            continue

        def restore(degraded: Pixels, denoise: Denoiser = denoise) -> Pixels:
            restored = denoise(degraded.astype(np.float32) / np.float32(255))
            return np.rint(np.clip(restored, 0, 1) * 255).astype(np.uint8)

        add({"row": name, "psnr": psnr(restore, data, "noise" if name == "BM3D" else "")})


def timed(entries: list[dict[str, Any]]) -> list[float]:
    """Median seconds for SIDE x SIDE pixels of each ticket, interleaved."""
    restorers = [SparseRestorer(load_network(Path(e["folder"]) / "weights.safetensors")) for e in entries]
    image = torch.rand(1, 3, SIDE, SIDE)
    taken: list[list[float]] = [[] for _ in restorers]
    for run in range(RUNS + 1):
        for restorer, times in zip(restorers, taken, strict=True):
            restorer(image)  # a first run after another network's warms the caches
            began = time.perf_counter()
            restorer(image)
            if run:
                times.append(time.perf_counter() - began)
    return [median(t) for t in taken]


def _about(values: list[float]) -> str:
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def report() -> None:
    every = results()
    tickets = [r for r in every if "seed" in r]
    if not tickets:
        raise SystemExit("nothing is trained yet: python benchmarks/study.py train DATA")
    tasks = list(tickets[0]["psnr"])
    lines = [
        "| row | density | ms | against global | steps | hours | seeds | mean | against global | "
        + " | ".join(tasks)
        + " |",
        "|---|---|---|---|---|---|---|---|---|" + "---|" * len(tasks),
    ]
    points = []
    usual = {r["seed"]: r for r in tickets if r["row"] == USUAL}
    for name in ROWS:
        rows = [
            r for r in tickets if r["row"] == name and r["seed"] in usual
        ]  # else there is nothing to compare with
        if not rows:
            continue
        means = [mean(r["psnr"].values()) for r in rows]
        beside = [usual[r["seed"]] for r in rows]  # of the same seed, which moves all rows alike
        clocked = [(r["ms"], u["ms"]) for r, u in zip(rows, beside, strict=True) if "ms" in r and "ms" in u]
        ms = mean(own for own, _ in clocked) if clocked else nan
        speed = f"{ms:.1f} | {mean(other / own for own, other in clocked):.2f}x" if clocked else "- | -"
        points.append((name, 100 * mean(r["density"] for r in rows), ms, mean(means)))
        better = [m - mean(u["psnr"].values()) for m, u in zip(means, beside, strict=True)]
        scores = " | ".join(_about([r["psnr"][t] for r in rows]) for t in tasks)
        lines.append(
            f"| {name} | {mean(r['density'] for r in rows):.1%} | {speed} | {rows[0]['steps']}"
            f" | {mean(r['hours'] for r in rows):.2f} | {len(rows)} | {_about(means)} | {_about(better)} | {scores} |"
        )
    lines += [
        "",
        "| without training | s per megapixel | of the 10.7% ticket's | " + " | ".join(tasks) + " |",
        "|---|---|---|" + "---|" * len(tasks),
    ]
    for r in every:
        if "over_ticket" in r:
            scores = " | ".join(f"{r['psnr'][t]:.2f}" if t in r["psnr"] else "-" for t in tasks)
            lines.append(
                f"| {r['row']} | {r['seconds_per_megapixel']:.2f} | {r['over_ticket']:.1f}x | {scores} |"
            )
    table = HERE / "study.md"
    before = table.read_text().split("<!-- tables -->")[0] if table.exists() else ""
    table.write_text(before + "<!-- tables -->\n\n" + "\n".join(lines) + "\n")
    _plot(points)


def _plot(points: list[tuple[str, float, float, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    looks = [{"color": f"C{i % 10}", "marker": "o^"[i // 10]} for i in range(len(points))]
    for axes, column, what in zip(
        figure.subplots(1, 2, sharey=True), (1, 2), ("density, %", "ms for 256x256"), strict=True
    ):
        for point, look in zip(points, looks, strict=True):
            axes.plot(point[column], point[3], linestyle="none", label=point[0], **look)
        axes.set(xlabel=what, ylabel="PSNR, mean over the test sets, dB")
        axes.set_xscale("log")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(HERE / "study.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("data", type=Path)
    training.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW")
    training.add_argument("--seed", type=int, action="append", help="0, 1 and 2 if none is given")
    commands.add_parser("clock")
    commands.add_parser("classical").add_argument("data", type=Path)
    commands.add_parser("report")
    given = parser.parse_args()
    if given.command == "train":
        train(given.data, given.rows, given.seed or [0, 1, 2])
    elif given.command == "clock":
        clock()
    elif given.command == "classical":
        classical(given.data)
    else:
        report()


if __name__ == "__main__":
    main()
