"""Ask whether pruning works alike on networks of five architectures, and how much faster each runs.

    python -m benchmarks.studies.architectures train DATA [NETWORK ...] [--seeds 0 1 2]
    python -m benchmarks.studies.architectures clock
    python -m benchmarks.studies.architectures report

- `train` trains what is missing, in runs/architectures, for hours. Stop it whenever you like.
- `clock` times the tickets that are there; nothing else may run.
- `report` writes the tables of architectures.md.

DATA holds train/ as training/configs/tiny.yaml expects it; NETWORK is a name of `NETWORKS`. Results are JSON
lines in benchmarks/studies/architectures.jsonl.

Every network is small, and trained on noise, rain, fog and JPEG together. `DENSE` is trained for STEPS. All
other rows go on from it for as many steps again: `TWICE` with every weight, the others pruned in rounds to a
tenth. `latency` is asked to be as fast as the layer-wise ticket, by the cost model.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypedDict, cast

import torch
from safetensors.torch import load_file

from mirl_sparse.choices import BackendName
from mirl_sparse.files import write_whole
from mirl_sparse.performance.comparison import Candidate, Comparison
from mirl_sparse.performance.peers import COMPILED, EAGER, STOCK
from mirl_sparse.performance.prices import cost_model
from mirl_sparse.runtime import Allocator
from mirl_training.pruning import Mask
from mirl_training.runs import Run, RunConfig, StepReport, load_config, read_architecture

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "architectures.jsonl", HERE / "architectures.md"
WORK = Path("runs/architectures")
TINY = load_config(HERE.parents[1] / "training/configs/tiny.yaml")
STEPS, ROUNDS, DENSITY = 300, 3, 0.1
SIDE, RUNS = 256, 11
PEERS = tuple(name for name in (*EAGER, *COMPILED) if name != STOCK and "bfloat16" not in name)


@dataclass(frozen=True)
class Network:
    """Describe a small network.

    Attributes:
        settings: Arguments of its class.
        exempt: Patterns of the first and the last layers' names, which are never pruned.
    """

    settings: Mapping[str, Any]
    exempt: tuple[str, ...]


NETWORKS = {
    "PromptIR": Network(TINY.to_dict()["network"], ("patch_embed.*", "output.*", "*linear_layer*")),
    "Restormer": Network(
        {"dim": 8, "num_blocks": [1, 1, 1, 2], "num_refinement_blocks": 1, "heads": [1, 2, 4, 8]},
        ("patch_embed.*", "output.*"),
    ),
    "NAFNet": Network(
        {"width": 16, "enc_blk_nums": [1, 1, 1, 2], "middle_blk_num": 1, "dec_blk_nums": [1, 1, 1, 1]},
        ("intro.*", "ending.*"),
    ),
    "SwinIR": Network(
        {
            "upscale": 1,
            "img_size": 64,
            "window_size": 8,
            "img_range": 1.0,
            "depths": [2, 2],
            "embed_dim": 24,
            "num_heads": [2, 2],
            "mlp_ratio": 2,
            "upsampler": "",
            "resi_connection": "1conv",
        },
        ("conv_first.*", "conv_last.*"),
    ),
    "DnCNN": Network(
        {"in_nc": 3, "out_nc": 3, "nc": 32, "nb": 8, "act_mode": "R"}, ("model.0.*", "model.14.*")
    ),
}
DENSE, TWICE = "dense", "dense, trained on"
CRITERIA = ("global", "layerwise", "latency", "random")
ROWS = (DENSE, TWICE, *CRITERIA)


class Entry(TypedDict, total=False):
    """Hold a trained network.

    Attributes:
        network: One of `NETWORKS`.
        row: One of `ROWS`.
        seed: Seed of the run.
        folder: Folder of its last round.
        density: Fraction of the prunable weights that are not zero.
        psnr: Mean PSNR in dB on held-back photos, by task.
        seconds: Seconds by the cost model for SIDE x SIDE pixels.
        ms: Median milliseconds for SIDE x SIDE pixels, where it was timed.
        dense_ms: The same of the strongest dense one, beside it.
        dense_peer: Which one that is.
    """

    network: str
    row: str
    seed: int
    folder: str
    density: float
    psnr: dict[str, float]
    seconds: float
    ms: float
    dense_ms: float
    dense_peer: str


def config(network: str, row: str, seed: int, start: Path | None, speedup: float | None) -> RunConfig:
    """Return the settings of a run."""
    values = TINY.to_dict()
    values["data"]["tasks"] = {"noise25": 1, "rain": 1, "fog": 1, "jpeg": 1}
    values["training"] |= {
        "steps": STEPS,
        "loss": "psnr",
        "optimizer": "muon",
        "learning_rate": 2e-3,
        "clip_norm": 100,
        "batch_size": 4,
        "seed": seed,
        "validate_every": STEPS,
        "save_every": 200,
    }
    values["pruning"] = {"rounds": 0}
    if start is None:
        values["architecture"] = None if network == "PromptIR" else network
        values["network"] = dict(NETWORKS[network].settings)
    else:
        values |= {"network": None, "start": str(start)}
        values["training"]["seed"] = seed + 100  # other photos than those of the dense round
    if row in CRITERIA:
        part = STEPS // (ROUNDS + 1)
        values["training"] |= {"steps": part, "validate_every": part, "warmup_steps": 10}
        values["pruning"] = {
            "criterion": row,
            "rounds": ROUNDS,
            "rewind": "none",
            "exempt": NETWORKS[network].exempt,
        }
        values["pruning"] |= {"speedup": speedup} if speedup else {"rate": 1 - DENSITY ** (1 / ROUNDS)}
    return RunConfig(**values)


def results() -> list[Entry]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def find(entries: Sequence[Entry], **wanted: object) -> Entry | None:
    return next((e for e in entries if wanted.items() <= cast(dict[str, object], e).items()), None)


def train(data: Path, networks: Sequence[str], seeds: Sequence[int]) -> None:
    Allocator().tune()
    for seed, network, row in itertools.product(seeds, networks, ROWS):
        if find(results(), network=network, row=row, seed=seed):
            continue
        entry = _trained(data, network, row, seed)
        with RESULTS.open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        print(json.dumps(entry), flush=True)


def _trained(data: Path, network: str, row: str, seed: int) -> Entry:
    start, speedup = None, None
    if row != DENSE:
        dense = find(results(), network=network, row=DENSE, seed=seed)
        assert dense is not None
        start = Path(dense["folder"]) / "weights.safetensors"
        if row == "latency":
            as_fast = find(results(), network=network, row="layerwise", seed=seed)
            assert as_fast is not None
            speedup = round(dense["seconds"] / as_fast["seconds"], 3)
    folder = WORK / f"{network}-{row.replace(', ', '-').replace(' ', '-')}-{seed}"
    last = Run(config(network, row, seed, start, speedup), data, folder, _quiet).go()
    mask = Mask(load_file(last / "mask.safetensors"))
    architecture = read_architecture(last / "weights.safetensors")
    return Entry(
        network=network,
        row=row,
        seed=seed,
        folder=str(last),
        density=mask.density,
        psnr=json.loads((last / "metrics.json").read_text())["psnr"],
        seconds=architecture.clock(architecture.empty(), cost_model()).seconds(mask),
    )


def _quiet(report: StepReport) -> None:
    pass


@torch.no_grad()
def clock() -> None:
    """Time all rows of a network and a seed in turns with the strongest dense network, and note it."""
    entries = results()
    for network, seed in itertools.product(NETWORKS, sorted({e["seed"] for e in entries})):
        rows = [e for e in entries if (e["network"], e["seed"]) == (network, seed)]
        rows = [e for e in rows if "ms" not in e and (Path(e["folder"]) / "weights.safetensors").exists()]
        if rows:
            _time(rows)
            write_whole(RESULTS, "".join(json.dumps(e) + "\n" for e in entries).encode())


def _time(rows: Sequence[Entry]) -> None:
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    candidates: dict[str, Candidate] = {}
    for entry in rows:
        architecture = read_architecture(Path(entry["folder"]) / "weights.safetensors")
        dense = architecture.network.eval()
        expected = dense(image)
        candidates[entry["row"]] = Candidate(architecture.restorer(dense, BackendName.CPU), expected)
    comparison = Comparison(dense, expected, candidates, image, PEERS)
    for _ in range(RUNS):
        comparison.round()
    result = comparison.result()
    peer = result.strongest_dense
    for entry in rows:
        entry["ms"] = 1e3 * result.rows[entry["row"]].median
        entry["dense_ms"] = 1e3 * result.rows[peer].median
        entry["dense_peer"] = peer
        print(json.dumps(entry), flush=True)


def report() -> None:
    """Write the tables into the page, between the lines that mark them."""
    before, after = "<!-- tables -->", "<!-- end -->"
    text = PAGE.read_text()
    head, tail = text.split(before)[0], text.split(after)[1]
    tables = "\n".join(_table(name, results()) for name in NETWORKS)
    write_whole(PAGE, f"{head}{before}\n{tables}{after}{tail}".encode())


def _table(network: str, entries: Sequence[Entry]) -> str:
    of_network = [e for e in entries if e["network"] == network]
    tasks = list(of_network[0]["psnr"])
    lines = [
        f"### {network}",
        "",
        f"| row | density | {' | '.join(tasks)} | mean | against dense, trained on | ms | over dense |",
        "|---|---|" + "---|" * (len(tasks) + 4),
    ]
    for row in ROWS:
        of_row = [e for e in of_network if e["row"] == row]
        if not of_row:
            continue
        gains = [
            _mean(e) - _mean(other) for e in of_row if (other := find(of_network, row=TWICE, seed=e["seed"]))
        ]
        timed = [e for e in of_row if "ms" in e]
        cells = [
            row,
            f"{mean(e['density'] for e in of_row):.1%}",
            *(f"{mean(e['psnr'][task] for e in of_row):.2f}" for task in tasks),
            f"{mean(map(_mean, of_row)):.2f}",
            _spread(gains, "{:+.2f}"),
            f"{mean(e['ms'] for e in timed):.1f}" if timed else "-",
            f"{mean(e['dense_ms'] / e['ms'] for e in timed):.2f}x" if timed else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", ""])


def _mean(entry: Entry) -> float:
    return mean(entry["psnr"].values())


def _spread(values: Sequence[float], form: str) -> str:
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return form.format(mean(values)) + spread if values else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("data", type=Path)
    training.add_argument("networks", nargs="*", metavar="NETWORK", default=[], choices=[[], *NETWORKS])
    training.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    commands.add_parser("clock")
    commands.add_parser("report")
    options = parser.parse_args()
    actions: dict[str, Callable[[], None]] = {
        "train": lambda: train(options.data, options.networks or tuple(NETWORKS), options.seeds),
        "clock": clock,
        "report": report,
    }
    actions[options.command]()


if __name__ == "__main__":
    main()
