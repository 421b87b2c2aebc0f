"""Carry a run through its rounds: the dense one, then rounds of prune, rewind and train.

Each finished round is a folder; see `RunFolder`. Of several processes the first one writes, and all read: the
folder must be one that they share.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import torch
import yaml

from mirl_sparse.choices import BackendName
from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.tickets import find_ticket
from mirl_training.data.training_data import Pairs, TrainingData
from mirl_training.engine.selection import TrainingEngine, choose_engine
from mirl_training.engine.trainer import Computation
from mirl_training.engine.world import World
from mirl_training.pruning.mask import Mask
from mirl_training.pruning.regrowth import regrow
from mirl_training.pruning.settings import PruningProtocol
from mirl_training.runs.architecture import (
    Architecture,
    new_architecture,
    read_architecture,
)
from mirl_training.runs.config import RunConfig, load_config
from mirl_training.runs.context import RunContext
from mirl_training.runs.folder import RunFolder, save_weights
from mirl_training.runs.progress import OnStep
from mirl_training.runs.pruner import Pruner
from mirl_training.runs.report import write_report
from mirl_training.runs.round import Round, Tools
from mirl_training.runs.validation import Validator

_SHORT = 60  # seconds


class Run:
    """Train one run in one folder; `go` carries it to the end from wherever it stands.

    The same engine gives the same bits again. All that may be wrong with the settings is found here, before
    anything is written, or trained for hours.

    Args:
        config: The settings.
        root: The folder that the data paths of the settings start from.
        folder: The run's folder; it is made if need be.
        on_step: Function that is told every step, of several processes by the first alone.
        engine: A `TrainingEngine`.
        device: "cpu", or "cuda" where the engine is PyTorch's.

    Attributes:
        config: The settings.
        folder: The run's folder.
        network: The network that trains.
        world: The processes that train together.
        engine: The engine that computes a step, "fused" or "reference".
        engine_note: A line that says why this engine.
        context: The objects that all rounds share.
        pruner: The pruner, which finds the mask of each round.

    Raises:
        UserError: The settings, the photos or the processes do not fit each other, the folder or the machine.
    """

    def __init__(
        self,
        config: RunConfig,
        root: Path,
        folder: Path,
        on_step: OnStep,
        engine: str = "auto",
        device: str = "cpu",
    ) -> None:
        if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
            raise UserError(f"device is {device!r}; expected cpu, or cuda where PyTorch finds a GPU")
        self.config, self.folder, self._on_step = config, folder, on_step
        precision = config.training.precision_on(device)
        self.engine, self.engine_note = choose_engine(engine, device, precision)
        self.world = World.join(device)
        self._check_engine()
        self._files = RunFolder(folder)
        self._check_settings()
        data = TrainingData(config, root)
        self._steps = [data.steps_of_round(index) for index in range(config.pruning.rounds + 1)]
        photos = self._check_photos(data, root)
        self._architecture = self._first_architecture()
        self.network = self._architecture.network
        for _, _, patch in config.training.shapes:
            self._architecture.check_patch(patch)
        pairs = data.validation(self._architecture.multiple)
        self._set_up(data, pairs, device)
        self._write_start(photos)

    def go(self, minutes: float | None = None) -> Path:
        """Train every round that is not finished, and return the last round's folder.

        Args:
            minutes: Minutes after which the run stops, at the next step; None for never.

        Raises:
            OutOfTime: The minutes have passed and a round is not finished; its state is saved.
            UserError: Another process trains in the folder, or a gradient is not finite.
        """
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        tools = Tools(self.pruner, self._validator, self._on_step, deadline)
        with self._files.locked() if self.world.leads else nullcontext():
            if self.world.leads:
                self._files.remove_partial_files()
            last = self.config.pruning.rounds
            for index in range(last + 1):
                is_left, began = not self.world.shared(self._files.round(index).exists), time.monotonic()
                if is_left:
                    Round(self.context, tools, index, sum(self._steps[index + 1 :])).train()
                if self.world.leads and (
                    is_left or index == last
                ):  # a kill may have come before the last report
                    # Pictures take two seconds, which short rounds would feel.
                    with_pictures = index == last or time.monotonic() - began > _SHORT
                    write_report(self.folder, self._validator.pairs if with_pictures else None)
                self.world.wait()
        return self._files.round(last)

    def _check_engine(self) -> None:
        if (first := self.world.shared(lambda: self.engine)) != self.engine:
            raise UserError(
                f"the first process trains by the engine {first}, this one by {self.engine}"
                f" ({self.engine_note}); give --engine reference, or what the first one has"
            )

    def _check_settings(self) -> None:
        written = self._files.config
        if written.exists() and not load_config(written).draws_as(self.config):
            raise UserError(
                f"{self.folder}: holds a run of other settings ({written}); give another --output or remove"
                " it"
            )
        for _, size, _ in self.config.training.shapes:
            self.world.check(size)

    def _check_photos(self, data: TrainingData, root: Path) -> str:
        """Return the digest of the photos and of the teacher; UserError if the run was begun with others."""
        digest, teacher = data.digest, self.config.training.teacher
        if teacher is not None:
            digest += sha256(find_ticket(teacher).read_bytes()).hexdigest()
        photos = self._files.photos
        if photos.exists() and photos.read_text() != digest:
            raise UserError(
                f"{self.folder}: was begun with other photos than those of {root}, or another teacher"
                f" ({photos}); give those again, or another --output"
            )
        return digest

    def _first_architecture(self) -> Architecture:
        """Return the network that the run begins with, from its folder if it has been begun."""
        config = self.config
        torch.manual_seed(config.training.seed)
        if self._files.start.exists():
            return read_architecture(self._files.start)
        if config.network is not None:
            return new_architecture(config.architecture, config.network)
        assert config.start is not None
        architecture = read_architecture(config.start)
        if config.regrow:
            source = read_architecture(config.regrow.source).network
            regrow(architecture.network, source, config.regrow.layers)
        return architecture

    def _set_up(self, data: TrainingData, pairs: Pairs, device: str) -> None:
        """Make what trains, prunes and validates, and check that pruning can reach its goal."""
        config, network = self.config, self.network
        is_fused = self.engine == TrainingEngine.FUSED
        backend = BackendName.CPU if is_fused else BackendName.REFERENCE
        self._validator = Validator(self._architecture, pairs, backend)
        teacher = None
        if config.training.teacher is not None:
            source = read_architecture(config.training.teacher)
            teacher = source.restorer(source.network.eval(), backend)
        gains = config.pruning.protocol == PruningProtocol.MIRL
        first = Mask.full(network, gains) if config.start is None else Mask.of(network, gains)
        network.train().requires_grad_(True).to(device)
        computation = Computation(self.engine, teacher, self.world)
        self.context = RunContext(data, self._files, self._architecture, network, computation)
        self.pruner = Pruner(self.context, first, self._validator.network)
        self.pruner.read_prices()
        self.pruner.check(network.state_dict())

    def _write_start(self, photos: str) -> None:
        """Write what a run begins with, unless it is there."""
        files = self._files
        self.world.wait()  # for all to have seen what is there
        if self.world.leads:
            if self.pruner.prices is not None and not files.prices.exists():
                write_whole(files.prices, json.dumps(self.pruner.prices).encode())
            if not files.config.exists():
                write_whole(files.config, yaml.safe_dump(self.config.to_dict(), sort_keys=False).encode())
            if not files.photos.exists():
                write_whole(files.photos, photos.encode())
            if not files.start.exists():
                save_weights(files.start, self.network.state_dict(), self._architecture.metadata())
        self.world.wait()
        self.pruner.read_prices()  # now those that all processes share
