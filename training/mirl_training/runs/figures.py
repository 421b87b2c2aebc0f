"""Draw the pictures of a run's report: its rounds as plots, and what the first and the last one restore."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from mirl_sparse.choices import BackendName
from mirl_training.runs.architecture import Restore, read_architecture
from mirl_training.runs.folder import RunFolder
from mirl_training.runs.progress import StepReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 4  # white pixels between the images of a row


def draw_plots(folder: Path, rounds: Sequence[StepReport]) -> bytes:
    """Return a PNG file: PSNR, seconds of a step and of an image, and the density of each layer, by round.

    Args:
        folder: The run's folder.
        rounds: The last report of each finished round; their ``seconds_per_step`` is that of the whole round.
    """
    from matplotlib.figure import Figure  # takes half a second to import, which few commands should pay

    timed = all("seconds_per_image" in r for r in rounds)

    figure = Figure(figsize=(12, 9), layout="constrained")
    grid = figure.add_gridspec(3 if timed else 2, 2)
    densities = [100 * r["density"] for r in rounds]

    def against_density(row: int, label: str) -> Axes:
        axes = figure.add_subplot(grid[row, 0])
        axes.set(xlabel="density, % of the prunable weights", ylabel=label, xlim=(105, 0))
        axes.grid(alpha=0.3)
        return axes

    axes = against_density(0, "PSNR, dB above the first round's")
    for task, dense in rounds[0]["psnr"].items():
        change = [r["psnr"][task] - dense for r in rounds]
        axes.plot(densities, change, marker="o", label=f"{task} ({dense:.1f} dB)")
    axes.legend(fontsize="small")
    times = {"seconds of a step (median)": [r["seconds_per_step"] for r in rounds]}
    if timed:
        times["seconds of an image (median)"] = [r["seconds_per_image"] for r in rounds]
    for row, (label, seconds) in enumerate(times.items(), 1):
        axes = against_density(row, label)
        axes.plot(densities, seconds, marker="o")
        axes.set_ylim(0, None)
    _plot_layers(figure, figure.add_subplot(grid[:, 1]), RunFolder(folder), rounds)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()


def _plot_layers(figure: Figure, axes: Axes, folder: RunFolder, rounds: Sequence[StepReport]) -> None:
    masks = [folder.load_mask(r["round"]).alive for r in rounds]
    order = list(load_file(folder.start))
    names = sorted(masks[0], key=order.index)
    percentages = np.array([[100 * float(mask[n].float().mean()) for mask in masks] for n in names])
    image = axes.imshow(percentages, aspect="auto", vmin=0, vmax=100, interpolation="nearest")
    axes.set_xticks(range(len(rounds)), [f"{r['density']:.1%}" for r in rounds])
    axes.set_yticks(
        range(len(names)),
        [n.removesuffix(".weight") for n in names],
        fontsize=max(2, min(6, 500 / len(names))),
    )
    axes.set_xlabel("density of the round")
    figure.colorbar(image, label="% of the layer's weights left")


def draw_examples(
    folder: Path, rounds: Sequence[StepReport], examples: Mapping[str, list[tuple[Tensor, Tensor]]]
) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3): a row per task of degraded, after the first round, after the last, clean.

    Args:
        folder: The run's folder.
        rounds: A report of each finished round.
        examples: Pairs by task, (degraded, clean), each (1, 3, H, W) in [0, 1]; the first of each is drawn.
    """
    ends = [_restorer(RunFolder(folder).weights(r["round"])) for r in (rounds[0], rounds[-1])]
    rows = []
    for pairs in examples.values():
        degraded, clean = pairs[0]
        images = (_pixels(x) for x in (degraded, *(restorer(degraded) for restorer in ends), clean))
        rows.append(np.concatenate([_framed(image) for image in images], 1))
    width = max(row.shape[1] for row in rows)
    return np.concatenate(
        [np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    )


def _restorer(weights: Path) -> Restore:
    architecture = read_architecture(weights)
    return architecture.follow(architecture.network.eval(), BackendName.AUTO)


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    return (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _framed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.pad(image, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
