"""Compare the sparse engine with the dense network in 8-bit integers, as OpenVINO runs it: time and loss.

    pip install -e '.[peers,training]'
    python -m benchmarks.studies.int8 DATA [--ticket small] [--side 256] [--json FILE]

NNCF quantises the dense network after training, with its defaults for transformers, calibrated on degraded
photos of DATA/train/clean/BSDS400. The photos that are scored, of DATA/test/denoise/CBSD68, are others. All
networks are timed in turns on one photo; nothing else may run. PSNR is of 8-bit results in RGB.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mirl_sparse.files import write_whole
from mirl_sparse.performance.environment import environment
from mirl_sparse.performance.peers import DENSE
from mirl_sparse.performance.timing import Call, Turns
from mirl_sparse.photos import read_image
from mirl_sparse.runtime import Allocator, SparseRestorer
from mirl_sparse.tickets import find_ticket, load_network
from mirl_training.data.tasks import degrade

CALIBRATED, SCORED = 32, 16  # photos
TASKS = "noise25", "jpeg"
RUNS = 21
SPARSE, FLOAT, INT8 = "sparse, float32", "dense OpenVINO, float32", "dense OpenVINO, int8"
OTHERS = "dense compiled", "dense OpenVINO bfloat16"

Restore = Callable[[Tensor], Tensor]


def photos(folder: Path, side: int, count: int, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (task, degraded, clean) of the middles of photos, each image (1, 3, side, side)."""
    rng, done = np.random.default_rng(seed), 0
    for path in sorted(folder.iterdir()):
        image = read_image(path).astype(np.float32) / np.float32(255)
        y, x = ((n - side) // 2 for n in image.shape[:2])
        if min(y, x) < 0:
            continue
        clean = image[y : y + side, x : x + side]
        task = TASKS[done % len(TASKS)]
        yield task, _tensor(degrade(clean, task, rng)), _tensor(clean)
        done += 1
        if done == count:
            return
    raise SystemExit(f"{folder}: has {done} photos of {side}x{side} pixels or more; expected {count}")


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))


def openvino_int8(network: nn.Module, calibration: list[Tensor]) -> tuple[Restore, int]:
    """Return what restores by the quantised network, and how many of its operations are quantised."""
    import nncf
    import openvino

    traced = torch.jit.trace(network, calibration[0], check_trace=False)
    shape = list(calibration[0].shape)
    model = openvino.convert_model(traced, example_input=calibration[0], input=shape)
    quantised = nncf.quantize(
        model,
        nncf.Dataset([image.numpy() for image in calibration]),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
    )
    count = sum(op.get_type_name() == "FakeQuantize" for op in quantised.get_ops())
    # No precision is asked for: what is not quantised runs in what OpenVINO takes by itself.
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = openvino.Core().compile_model(quantised, "CPU", threads).create_infer_request()
    return lambda image: torch.from_numpy(request.infer([image.numpy()])[0].copy()), count


def psnr(restored: Tensor, clean: Tensor) -> float:
    rounded = (restored.clamp(0, 1) * 255).round() / 255
    return -10 * math.log10(max(1e-10, float((rounded - clean).square().mean())))


@torch.no_grad()
def compare(ticket: str, data: Path, side: int) -> dict[str, Any]:
    """Return the rows of the comparison."""
    Allocator().tune()
    network = load_network(find_ticket(ticket)).eval()
    calibration = [image for _, image, _ in photos(data / "train/clean/BSDS400", side, CALIBRATED, 0)]
    scored = list(photos(data / "test/denoise/CBSD68", side, SCORED, 1))
    image = scored[0][1]
    int8, quantised = openvino_int8(network, calibration)
    restorers: dict[str, Restore] = {FLOAT: network, SPARSE: SparseRestorer(network), INT8: int8}
    calls: dict[str, Callable[[], Call]] = {
        FLOAT: partial(DENSE["dense OpenVINO"], network, image),
        **{name: partial(DENSE[name], network, image) for name in OTHERS if not DENSE[name].unavailable()},
        INT8: lambda: partial(int8, image),
        SPARSE: lambda: partial(restorers[SPARSE], image),
    }
    turns = Turns()
    right = network(image)
    for name, make in calls.items():
        turns.admit(name, make, right, math.inf)
    for _ in range(RUNS):
        turns.round()
    rows = {}
    for name in turns.times:
        row: dict[str, Any] = {"ms": 1e3 * float(np.median(turns.times[name]))}
        if name in restorers:
            row["psnr"] = {task: mean(_scores(restorers[name], scored, task)) for task in TASKS}
            row["to_float"] = mean(psnr(restorers[name](x), network(x).clamp(0, 1)) for _, x, _ in scored)
        rows[name] = row
    return {"ticket": ticket, "side": side, "quantised": quantised, "rows": rows, **environment().to_dict()}


def _scores(restore: Restore, scored: list[tuple[str, Tensor, Tensor]], wanted: str) -> list[float]:
    return [psnr(restore(degraded), clean) for task, degraded, clean in scored if task == wanted]


def show(result: dict[str, Any]) -> None:
    rows = result["rows"]
    print(f"| network | ms | over sparse | {' | '.join(f'{t}, dB' for t in TASKS)} | to float32, dB |")
    print("|---|---|---|" + "---|" * (len(TASKS) + 1))
    for name, row in rows.items():
        scores = [f"{row['psnr'][task]:.2f}" for task in TASKS] if "psnr" in row else ["-"] * len(TASKS)
        same = f"{row['to_float']:.1f}" if "to_float" in row else "-"
        factor = row["ms"] / rows[SPARSE]["ms"]
        print(f"| {name} | {row['ms']:.1f} | {factor:.2f} | {' | '.join(scores)} | {same} |")
    print(
        f"\n{result['quantised']} places are quantised; {result['threads']} threads of {result['processor']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--ticket", default="small")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = compare(options.ticket, options.data, options.side)
    show(result)
    if options.json:
        write_whole(options.json, json.dumps(result, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
