"""Know what lies where in a run's folder, and write it.

    RUN/config.yaml            the settings, defaults filled in
    RUN/photos.sha256          which photos it is trained on: their names and sizes
    RUN/start.safetensors      the initial weights
    RUN/rewind.safetensors     the weights to rewind to, when that is a later step of round 0
    RUN/prices.json            the cost model of the machine that the run began on, for the criterion latency
    RUN/round_00/ …            weights.safetensors, mask.safetensors, metrics.json
    RUN/state.pt               the unfinished round, every ``save_every`` steps
    RUN/latest.safetensors     weights of the unfinished round when its time was over, ready to be converted
    RUN/log.jsonl              one line per validation; a stopped run may repeat the last ones
    RUN/.lock                  held by the process that writes here
    RUN/report.md, *.png       the finished rounds as a table and plots, and what the first and last restore

Every file but the log is written whole under another name and then renamed. So the same command, started
again, goes on where the last one was stopped, and draws what that one would have drawn.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_training.pruning.mask import Mask
from mirl_training.runs.progress import Metrics, StepReport


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a state dict of a network as safetensors, with `Architecture.metadata`."""
    state = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in weights.items()}
    write_whole(path, save(state, metadata))


def read_log(folder: Path) -> Iterator[StepReport]:
    """Yield what a run told of each validation, in order; a line that a kill cut short is skipped."""
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


@dataclass(frozen=True)
class RunFolder:
    """Hold the paths of a run's folder.

    Attributes:
        path: The folder; it need not exist yet.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Return the path of the settings."""
        return self.path / "config.yaml"

    @property
    def photos(self) -> Path:
        """Return the path of the digest of the photos."""
        return self.path / "photos.sha256"

    @property
    def start(self) -> Path:
        """Return the path of the initial weights."""
        return self.path / "start.safetensors"

    @property
    def rewind(self) -> Path:
        """Return the path of the weights to rewind to, when that is a later step of round 0."""
        return self.path / "rewind.safetensors"

    @property
    def prices(self) -> Path:
        """Return the path of the cost model's prices."""
        return self.path / "prices.json"

    @property
    def state(self) -> Path:
        """Return the path of the unfinished round."""
        return self.path / "state.pt"

    @property
    def latest(self) -> Path:
        """Return the path of the weights of the unfinished round, as they were when its time was over."""
        return self.path / "latest.safetensors"

    def round(self, index: int) -> Path:
        """Return the folder of a finished round."""
        return self.path / f"round_{index:02d}"

    def weights(self, index: int) -> Path:
        """Return the path of a finished round's weights."""
        return self.round(index) / "weights.safetensors"

    def mask(self, index: int) -> Path:
        """Return the path of a finished round's mask."""
        return self.round(index) / "mask.safetensors"

    def load_mask(self, index: int) -> Mask:
        """Read the mask of a finished round."""
        return Mask(load_file(self.mask(index)))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in the folder meanwhile.

        Where the system or the disk has no such locks, nothing is checked.

        Raises:
            UserError: Another process trains in the folder.
        """
        with (self.path / ".lock").open("w") as stream:
            try:
                import fcntl

                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: another process trains this run; wait for its end, or give another"
                    " --output"
                ) from None
            except (ImportError, OSError):
                pass
            yield

    def remove_partial_files(self) -> None:
        """Remove what a run that was killed while it wrote has left; call it within `locked`."""
        for partial in self.path.glob(".*.part"):
            partial.unlink(missing_ok=True)

    def append_log(self, report: StepReport) -> None:
        """Add a line to the log, after the end of a line that a kill cut short."""
        with (self.path / "log.jsonl").open("ab+") as stream:
            stream.seek(max(0, stream.tell() - 1))
            is_cut_short = stream.read() not in (b"", b"\n")
            stream.write(b"\n" * is_cut_short + json.dumps(report).encode() + b"\n")

    def finish_round(
        self, metrics: Metrics, mask: Mask, weights: dict[str, Tensor], metadata: dict[str, str]
    ) -> None:
        """Write the folder of a round, whole or not at all, and remove the saved state.

        Args:
            metrics: The round's metrics; their ``round`` names the folder.
            mask: The mask that the round trained under.
            weights: The weights that the round leaves behind, by their names in the state dict.
            metadata: What `save_weights` writes beside them.
        """
        final = self.round(metrics["round"])
        part = final.with_name(f"{final.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        save_weights(part / "weights.safetensors", weights, metadata)
        write_whole(part / "mask.safetensors", save({k: v.contiguous() for k, v in mask.alive.items()}))
        write_whole(part / "metrics.json", json.dumps(metrics, indent=1).encode() + b"\n")
        part.rename(final)
        for unfinished in (self.state, self.latest):
            unfinished.unlink(missing_ok=True)
