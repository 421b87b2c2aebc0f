"""Check what lottery tickets of the tiny network hold, and what each criterion is worth in time.

    python -m benchmarks.studies.study train DATA [ROW ...] [--seed N]
    python -m benchmarks.studies.study classical DATA
    python -m benchmarks.studies.study clock
    python -m benchmarks.studies.study report

- `train` trains and scores what is missing, in runs/study, for hours. Stop it whenever you like.
- `classical` scores what scikit-image and BM3D offer; BM3D takes an hour. It wants
  `pip install -e '.[classical]'`.
- `clock` times all that is not timed yet; nothing else may run.
- `report` writes study.md and study.png.

DATA holds train/ and test/ as training/configs/small.yaml and `mirl-sparse eval` expect them. ROW is a name
of `ROWS`. Scores are JSON lines in benchmarks/studies/study.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from math import nan
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, TypedDict, cast

import numpy as np
import torch
from safetensors.torch import load_file
from skimage import restoration
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio

from mirl_sparse.architectures.promptir import PromptIR, PromptIRConfig
from mirl_sparse.files import write_whole
from mirl_sparse.performance.prices import cost_model
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.tickets import load_network
from mirl_training.data.degradations import add_noise
from mirl_training.evaluation import Pixels, standard_sets
from mirl_training.pruning import Mask, PromptIRClock, prune_to_density
from mirl_training.runs import Run, RunConfig, architecture_of, load_config, read_log, save_weights

HERE = Path(__file__).parent
RESULTS = HERE / "study.jsonl"
WORK = Path("runs/study")
TINY = load_config(HERE.parents[1] / "training/configs/tiny.yaml")
STEPS, REWIND = 800, 80  # of every round; the early step that tickets are rewound to
EXEMPT = ("patch_embed.*", "output.*", "*linear_layer*")
RATE, ROUNDS = 0.2, 15  # MIR-L's
TENTH = 10  # the round that leaves 10.7%
USUAL = "gradual global 10%"  # what other rows are compared with
GRADUAL = {"rounds": 4, "round_steps": 200, "final_steps": STEPS, "rewind": "none"}
SIDE, RUNS, CLASSICAL_RUNS = 256, 21, 5


def _new_network() -> PromptIR:
    assert isinstance(TINY.network, PromptIRConfig)
    return PromptIR(TINY.network)


def config(seed: int, **pruning: Any) -> RunConfig:
    """Return the settings of a run of the tiny network, trained for STEPS on all tasks."""
    values = TINY.to_dict()
    values["data"]["tasks"] = {"noise15": 1, "noise25": 1, "noise50": 1, "rain": 2, "haze": 1, "jpeg": 1}
    values["training"] |= {
        "steps": STEPS,
        "loss": "psnr",
        "optimizer": "muon",
        "learning_rate": 2e-3,
        "clip_norm": 100,
        "seed": seed,
        "validate_every": STEPS,
        "save_every": 200,
    }
    values["pruning"] = {"rounds": 0, "exempt": EXEMPT} | pruning
    return RunConfig(**values)


def trained(name: str, settings: RunConfig, data: Path, before: Path | None = None) -> Path:
    """Train a run to its end, unless that is done.

    Args:
        name: Of the run's folder, which also has the digest of the settings.
        settings: Of the run.
        data: Root of the photos.
        before: Folder of another run whose rounds are the first rounds of this one.

    Returns:
        The folder of the run.
    """
    folder = WORK / f"{name}-{settings.digest}"
    if (folder / f"round_{settings.pruning.rounds:02d}").exists():
        return folder
    if before is not None and not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for path in [*before.glob("*.safetensors"), before / "log.jsonl", *before.glob("round_??")]:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, part / path.name)
        part.rename(folder)
    Run(settings, data, folder, lambda report: None).go()
    return folder


def dense(seed: int, data: Path) -> Path:
    return trained("dense", config(seed, rewind=REWIND), data)


def imp(seed: int, data: Path, rounds: int = TENTH, rewind: str | int = REWIND) -> Path:
    settings = config(seed, criterion="global", rate=RATE, rounds=rounds, rewind=rewind)
    return trained("imp", settings, data, dense(seed, data) if rounds == TENTH else imp(seed, data))


def from_mask(name: str, seed: int, data: Path, mask: Mask, weights: dict[str, torch.Tensor]) -> Path:
    """Train the weights that a mask keeps, alone, and return the folder of the round."""
    network = _new_network()
    network.load_state_dict(weights)
    mask.apply(network)
    start = WORK / f"{name}-{seed}.safetensors"
    save_weights(start, network.state_dict(), architecture_of(network).metadata())
    values = config(seed).to_dict() | {"network": None, "start": str(start)}
    return trained(name, RunConfig(**values), data) / "round_00"


def control(seed: int, data: Path, shuffled: bool) -> Path:
    """Train a control of the ticket at 10.7%, and return the folder of the round.

    Its mask is shuffled within every layer, or else its initial weights are those of another seed.
    """
    base = imp(seed, data)
    mask = Mask(load_file(base / f"round_{TENTH:02d}/mask.safetensors"))
    if shuffled:
        generator = torch.Generator().manual_seed(seed)
        mask = Mask(
            {
                n: keep.flatten()[torch.randperm(keep.numel(), generator=generator)].view_as(keep)
                for n, keep in mask.alive.items()
            }
        )
        return from_mask("random", seed, data, mask, load_file(base / "rewind.safetensors"))
    torch.manual_seed(1000 + seed)
    return from_mask("reinit", seed, data, mask, _new_network().state_dict())


def one_shot(seed: int, data: Path) -> Path:
    settings = config(seed, criterion="global", rate=1 - 0.8**TENTH, rounds=1, rewind=REWIND)
    return trained("oneshot", settings, data, dense(seed, data)) / "round_01"


def gradual(seed: int, data: Path, criterion: str, density: float = 0.1, **more: Any) -> Path:
    settings = config(seed, criterion=criterion, **GRADUAL, **({"rate": 1 - density ** (1 / 4)} | more))
    return trained(f"gradual-{criterion}", settings, data, dense(seed, data)) / "round_04"


def as_fast(seed: int, data: Path, criterion: str, faster: float = 1) -> Path:
    """Train a gradual ticket that takes as long as the global one at 10%, by the cost model.

    Args:
        seed: Of the run.
        data: Root of the photos.
        criterion: Of the pruning.
        faster: How many times as fast as the global ticket it is to be.

    Returns:
        The folder of its last round.
    """
    model, first = cost_model(), load_network(gradual(seed, data, "global") / "weights.safetensors")
    full, clock = Mask.full(first), PromptIRClock(first, model)
    budget = clock.seconds(Mask.of(first)) / faster
    if criterion == "latency":
        return gradual(seed, data, "latency", speedup=round(clock.seconds(full) / budget, 2), rate=RATE)
    trained_dense = load_network(dense(seed, data) / "round_00/weights.safetensors")
    low, high = 0.01, 0.9
    for _ in range(12):
        middle = (low + high) / 2
        mask = prune_to_density(trained_dense, full, middle, criterion, EXEMPT)
        low, high = (middle, high) if clock.seconds(mask) < budget else (low, middle)
    return gradual(seed, data, criterion, round(low, 3))


class Score(TypedDict):
    """Hold what every line of the results has.

    Attributes:
        row: Name of the ticket, one of `ROWS`, or of the classical method.
        psnr: Mean PSNR in dB by test set.
    """

    row: str
    psnr: dict[str, float]


class Cost(TypedDict):
    """Hold what training took, a round and all rounds before it.

    Attributes:
        steps: Number of steps.
        hours: Hours of them.
    """

    steps: int
    hours: float


class Ticket(Score, Cost):
    """Hold a trained ticket.

    Attributes:
        seed: Seed of the run.
        folder: Folder of its last round.
        density: Fraction of the prunable weights that are not zero.
    """

    seed: int
    folder: str
    density: float


class TimedTicket(Ticket, total=False):
    """Hold a ticket that may be timed.

    Attributes:
        ms: Median milliseconds for SIDE x SIDE pixels.
    """

    ms: float


class Classical(Score, total=False):
    """Hold a method without training.

    Attributes:
        seconds_per_megapixel: Median seconds for a megapixel.
        over_ticket: Its time over the time of the ticket at 10.7%.
    """

    seconds_per_megapixel: float
    over_ticket: float


Entry = TimedTicket | Classical  # a line of the results
Row = Callable[[int, Path], Path]
Denoiser = Callable[[np.ndarray], np.ndarray]
Point = tuple[str, float, float, float]  # name, density in %, ms, mean PSNR in dB
ROWS: dict[str, Row] = {
    "dense": lambda seed, data: dense(seed, data) / "round_00",
    "imp 51%": lambda seed, data: imp(seed, data) / "round_03",
    "imp 21%": lambda seed, data: imp(seed, data) / "round_07",
    "imp 10.7%": lambda seed, data: imp(seed, data) / f"round_{TENTH}",
    "imp 3.5%": lambda seed, data: imp(seed, data, ROUNDS) / f"round_{ROUNDS}",
    "imp 10.7%, rewound to step 0": lambda seed, data: imp(seed, data, rewind="initial") / f"round_{TENTH}",
    "random mask 10.7%": lambda seed, data: control(seed, data, shuffled=True),
    "fresh weights 10.7%": lambda seed, data: control(seed, data, shuffled=False),
    "one-shot 10.7%": one_shot,
    USUAL: lambda seed, data: gradual(seed, data, "global"),
    "gradual layerwise 10%": lambda seed, data: gradual(seed, data, "layerwise"),
    "gradual lamp 10%": lambda seed, data: gradual(seed, data, "lamp"),
    "gradual layerwise, as fast as global": lambda seed, data: as_fast(seed, data, "layerwise"),
    "gradual lamp, as fast as global": lambda seed, data: as_fast(seed, data, "lamp"),
    "gradual latency, as fast as global": lambda seed, data: as_fast(seed, data, "latency"),
    "gradual latency, 1.5x as fast as global": lambda seed, data: as_fast(seed, data, "latency", 1.5),
    "gradual latency, 1.75x as fast as global": lambda seed, data: as_fast(seed, data, "latency", 1.75),
}


def psnr(restore: Callable[[Pixels], Pixels], data: Path, tasks: str = "") -> dict[str, float]:
    """Return the mean PSNR in dB of each test set with ``tasks`` in its name."""
    scores = {}
    for task, images in standard_sets(data / "test").items():
        if tasks not in task:
            continue
        scores[task] = mean(float(peak_signal_noise_ratio(i.clean, restore(i.degraded))) for i in images())
    return scores


def cost(folder: Path) -> Cost:
    """Return the steps and hours of training of a round and all rounds before it."""
    last = int(folder.name.removeprefix("round_"))
    ends = {}  # a round that was stopped at its end has two lines
    for entry in read_log(folder.parent):
        if entry["round"] <= last and entry["step"] == entry["steps"]:
            ends[entry["round"]] = entry
    return {
        "steps": sum(e["steps"] for e in ends.values()),
        "hours": sum(e["steps"] * e["seconds_per_step"] / 3600 for e in ends.values()),
    }


def results() -> list[Entry]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def add(entry: Entry) -> None:
    with RESULTS.open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
    print(json.dumps(entry), flush=True)


def tickets_of(entries: list[Entry]) -> list[TimedTicket]:
    """Return the entries of tickets, in their order."""
    return [cast(TimedTicket, entry) for entry in entries if "seed" in entry]


def classical_of(entries: list[Entry]) -> list[Classical]:
    """Return the entries of methods without training, in their order."""
    return [cast(Classical, entry) for entry in entries if "seed" not in entry]


def train(data: Path, rows: list[str], seeds: list[int]) -> None:
    for seed, name in itertools.product(seeds, rows or ROWS):
        if any((r["row"], r["seed"]) == (name, seed) for r in tickets_of(results())):
            continue
        folder = ROWS[name](seed, data)
        network = load_network(folder / "weights.safetensors")
        density = Mask(load_file(folder / "mask.safetensors")).density
        scores = psnr(SparseRestorer(network).restore, data)
        training = cost(folder)
        add(
            TimedTicket(
                row=name,
                seed=seed,
                folder=str(folder),
                density=density,
                steps=training["steps"],
                hours=training["hours"],
                psnr=scores,
            )
        )


def clock() -> None:
    """Time what is not timed yet, and put that in its line of the results.

    All tickets of a seed are timed in turns; the classical methods in turns with one ticket. A seed is
    skipped if one of its tickets is not here, since times of different runs of this command do not compare.
    """
    every = results()
    trained_tickets = tickets_of(every)
    for seed in {r["seed"] for r in trained_tickets}:
        tickets = [r for r in trained_tickets if r["seed"] == seed]
        absent = [r["row"] for r in tickets if not Path(r["folder"]).exists()]
        if absent:
            print(f"seed {seed} is not timed, since tickets of it are not in {WORK}: {', '.join(absent)}")
        elif any("ms" not in r for r in tickets):
            for entry, taken in zip(tickets, timed(tickets), strict=True):
                entry["ms"] = 1e3 * taken
    denoisers = _classical()
    untrained = [r for r in classical_of(every) if r["row"] in denoisers]
    tickets = [r for r in trained_tickets if r["row"] == "imp 10.7%" and Path(r["folder"]).exists()]
    if not tickets:
        print(
            "what needs no training is not timed, since no ticket of imp 10.7% is in"
            f" {WORK} to compare it with"
        )
    elif any("over_ticket" not in r for r in untrained):
        _clock_classical(untrained, denoisers, tickets[0])
    write_whole(RESULTS, "".join(json.dumps(entry) + "\n" for entry in every).encode())


def _clock_classical(rows: list[Classical], denoisers: dict[str, Denoiser], ticket: Ticket) -> None:
    """Time classical methods on a photo with noise of sigma 25.

    Their rows get the seconds per megapixel and how many times the ticket's time that is.
    """
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


def _total_variation(image: np.ndarray) -> np.ndarray:
    return restoration.denoise_tv_chambolle(image, weight=max(1e-3, 1.2 * _sigma(image)), channel_axis=-1)


def _sigma(image: np.ndarray) -> float:
    return float(np.mean(restoration.estimate_sigma(image, channel_axis=-1)))


def _classical() -> dict[str, Denoiser]:
    """Return the methods without training: they restore float (H, W, 3) in [0, 1] and estimate the noise."""
    denoisers: dict[str, Denoiser] = {
        "non-local means": _non_local_means,
        "wavelet (BayesShrink)": partial(
            restoration.denoise_wavelet,
            method="BayesShrink",
            mode="soft",
            rescale_sigma=True,
            convert2ycbcr=True,
            channel_axis=-1,
        ),
        "total variation": _total_variation,
    }
    if find_spec("bm3d") is None:
        print("BM3D: not installed (pip install -e '.[classical]'); left out")
    else:
        import bm3d

        denoisers["BM3D"] = lambda x: bm3d.bm3d_rgb(x, max(1e-3, _sigma(x)))
    return denoisers


def classical(data: Path) -> None:
    """Score the methods that are not scored yet; BM3D on noise alone, which takes most of an hour."""
    for name, denoise in _classical().items():
        if any(r["row"] == name for r in results()):
            continue

        def restore(degraded: Pixels, denoise: Denoiser = denoise) -> Pixels:
            restored = denoise(degraded.astype(np.float32) / np.float32(255))
            return np.rint(np.clip(restored, 0, 1) * 255).astype(np.uint8)

        add(Classical(row=name, psnr=psnr(restore, data, "noise" if name == "BM3D" else "")))


def timed(entries: Sequence[Ticket]) -> list[float]:
    """Return the median seconds of each ticket for SIDE x SIDE pixels, timed in turns."""
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
    tickets = tickets_of(every)
    if not tickets:
        raise SystemExit("nothing is trained yet: python -m benchmarks.studies.study train DATA")
    tasks = list(tickets[0]["psnr"])
    lines, points = _ticket_table(tickets, tasks)
    lines += ["", *_classical_table(classical_of(every), tasks)]
    page = HERE / "study.md"
    before = page.read_text().split("<!-- tables -->")[0] if page.exists() else ""
    page.write_text(before + "<!-- tables -->\n\n" + "\n".join(lines) + "\n")
    _plot(points)


def _ticket_table(tickets: list[TimedTicket], tasks: list[str]) -> tuple[list[str], list[Point]]:
    """Return the table of the tickets in Markdown, and their points of the plot."""
    columns = ["row", "density", "ms", "against global", "steps", "hours", "seeds", "mean", "against global"]
    lines = [f"| {' | '.join([*columns, *tasks])} |", "|" + "---|" * (len(columns) + len(tasks))]
    points = []
    usual = {r["seed"]: r for r in tickets if r["row"] == USUAL}
    for name in ROWS:
        # A seed without the usual row has nothing to be compared with.
        rows = [r for r in tickets if r["row"] == name and r["seed"] in usual]
        if not rows:
            continue
        means = [mean(r["psnr"].values()) for r in rows]
        beside = [usual[r["seed"]] for r in rows]  # of the same seed, which moves all rows alike
        clocked = [(r["ms"], u["ms"]) for r, u in zip(rows, beside, strict=True) if "ms" in r and "ms" in u]
        ms = mean(row_ms for row_ms, _ in clocked) if clocked else nan
        speed = "- | -"
        if clocked:
            speed = f"{ms:.1f} | {mean(usual_ms / row_ms for row_ms, usual_ms in clocked):.2f}x"
        density = mean(r["density"] for r in rows)
        points.append((name, 100 * density, ms, mean(means)))
        better = [m - mean(u["psnr"].values()) for m, u in zip(means, beside, strict=True)]
        scores = " | ".join(_about([r["psnr"][t] for r in rows]) for t in tasks)
        hours = mean(r["hours"] for r in rows)
        lines.append(
            f"| {name} | {density:.1%} | {speed} | {rows[0]['steps']} | {hours:.2f} | {len(rows)}"
            f" | {_about(means)} | {_about(better)} | {scores} |"
        )
    return lines, points


def _classical_table(rows: list[Classical], tasks: list[str]) -> list[str]:
    """Return the table of the methods without training, in Markdown."""
    columns = ["without training", "s per megapixel", "of the 10.7% ticket's", *tasks]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for r in rows:
        if "over_ticket" in r:
            scores = " | ".join(f"{r['psnr'][t]:.2f}" if t in r["psnr"] else "-" for t in tasks)
            lines.append(
                f"| {r['row']} | {r['seconds_per_megapixel']:.2f} | {r['over_ticket']:.1f}x | {scores} |"
            )
    return lines


def _plot(points: list[Point]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    looks = [{"color": f"C{i % 10}", "marker": "o^"[i // 10]} for i in range(len(points))]
    for axes, column, label in zip(
        figure.subplots(1, 2, sharey=True), (1, 2), ("density, %", "ms for 256x256"), strict=True
    ):
        for point, look in zip(points, looks, strict=True):
            axes.plot(point[column], point[3], linestyle="none", label=point[0], **look)
        axes.set(xlabel=label, ylabel="PSNR, mean over the test sets, dB")
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
    args = parser.parse_args()
    if args.command == "train":
        train(args.data, args.rows, args.seed or [0, 1, 2])
    elif args.command == "clock":
        clock()
    elif args.command == "classical":
        classical(args.data)
    else:
        report()


if __name__ == "__main__":
    main()
