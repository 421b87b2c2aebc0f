"""A run: the dense round, then rounds of prune, rewind and train, each finished one a folder.

    RUN/config.yaml            the settings, defaults filled in
    RUN/start.safetensors      the initial weights
    RUN/rewind.safetensors     the weights to rewind to, when that is a later step of round 0
    RUN/prices.json         what the criterion latency counts with: the cost model of the machine that the run began on
    RUN/round_00/ …            weights.safetensors, mask.safetensors, metrics.json
    RUN/state.pt               the unfinished round, every ``save_every`` steps
    RUN/log.jsonl              one line per validation; a stopped run may repeat the last ones
    RUN/report.md, cost.png    the finished rounds: PSNR and the cost of a step against density

Every file but the log is written whole under another name and then renamed, so the same command started
again goes on where the last one was stopped, and draws what it would have drawn.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from mirl_kernels._cpu import BackendError
from mirl_sparse.cost import CostModel, cost_model
from mirl_sparse.errors import UserError
from mirl_sparse.files import write_whole
from mirl_sparse.network import PromptIR
from mirl_sparse.restorer import SparseRestorer
from mirl_sparse.ticket import find
from mirl_sparse.to_ticket import load
from mirl_training.config import RunConfig
from mirl_training.data import TrainingData
from mirl_training.fused import choose_engine, fuse
from mirl_training.latency import prune_to_latency, seconds
from mirl_training.masks import Mask, prune
from mirl_training.report import write_report

Report = Callable[[dict[str, Any]], None]


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to ``peak`` over ``warmup`` steps, then half a cosine down to 0 at ``steps``."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_weights(path: Path, network: PromptIR) -> None:
    """All parameters as safetensors, with the network's config in the metadata."""
    state = {k: v.detach().contiguous() for k, v in network.state_dict().items()}
    metadata = {"config": json.dumps(network.config.to_dict())}
    write_whole(path, save(state, metadata))


class Run:
    """One run in one folder; `go` carries it to the end from wherever it stands. ``engine`` is one of `fused.ENGINES`; the
    same one gives the same bits again."""

    def __init__(self, config: RunConfig, root: Path, folder: Path, report: Report, engine: str = "auto") -> None:
        self.config, self.folder, self._report = config, folder, report
        self.engine, self.engine_note = choose_engine(engine)
        written, start = folder / "config.yaml", folder / "start.safetensors"
        if written.exists() and yaml.safe_load(written.read_text(encoding="utf-8")) != config.to_dict():
            raise UserError(f"{folder}: holds a run of other settings ({written}); give another --output or remove it")
        # All that may be wrong with the settings is found before anything is written, or trained for hours.
        self.data = TrainingData(config, root)
        self.validation = self.data.validation()
        torch.manual_seed(config.training.seed)
        if start.exists():
            self.network = load(start)
        else:
            self.network = PromptIR(config.network) if config.start is None else load(find(config.start))
        self.network.requires_grad_(True)
        # What validation restores with: it takes the weights of the network that trains.
        copied = PromptIR(self.network.config)
        self._restorer = SparseRestorer(copied, "cpu" if self.engine == "fused" else "reference")
        self._first = Mask.full(self.network) if config.start is None else Mask.of(self.network)
        if config.pruning.criterion == "latency":
            self._model = self._prices()
            self._seconds = seconds(self.network, self._first, self._model)
        self._prune(self._first, config.pruning.rounds)
        if not start.exists():
            if config.pruning.criterion == "latency":
                write_whole(folder / "prices.json", json.dumps(self._model.prices).encode())
            write_whole(written, yaml.safe_dump(config.to_dict(), sort_keys=False).encode())
            save_weights(start, self.network)
        for left in folder.glob(".*.part"):  # of a run that was killed while it wrote
            left.unlink()
        self._steps_before = [0]
        for index in range(config.pruning.rounds + 1):
            self._steps_before.append(self._steps_before[-1] + config.steps_of_round(index))

    def round_folder(self, index: int) -> Path:
        return self.folder / f"round_{index:02d}"

    def go(self) -> Path:
        """Train every round that is not finished; returns the last round's folder."""
        for index in range(self.config.pruning.rounds + 1):
            left = not self.round_folder(index).exists()
            if left:
                self._round(index)
            if left or index == self.config.pruning.rounds:  # which a kill may have come before
                write_report(self.folder)
        return self.round_folder(self.config.pruning.rounds)

    def _prune(self, mask: Mask, index: int) -> Mask:
        """The mask of round ``index``, nested in the given one, by the network's present weights."""
        pruning = self.config.pruning
        if pruning.speedup is not None and pruning.rounds:
            budget = self._seconds * pruning.speedup ** (-index / pruning.rounds)
            return prune_to_latency(self.network, mask, budget, self._model, pruning.exempt)
        density = self._first.density * (1 - pruning.rate) ** index
        return prune(self.network, mask, density, pruning.criterion, pruning.exempt)

    def _prices(self) -> CostModel:
        """The run's cost model: the one that it began with, or this machine's."""
        kept = self.folder / "prices.json"
        try:
            return CostModel(json.loads(kept.read_text())) if kept.exists() else cost_model()
        except BackendError as error:
            raise UserError(
                f"pruning.criterion is latency, which is measured on the C++ kernels, but {error}"
            ) from None

    def _begin(self, index: int) -> Mask:
        """Load, prune and rewind: leaves the network at the start of round ``index``."""
        if index == 0:
            self.network.load_state_dict(load_file(self.folder / "start.safetensors"))
            return self._first
        before, pruning = self.round_folder(index - 1), self.config.pruning
        self.network.load_state_dict(load_file(before / "weights.safetensors"))
        mask = self._prune(Mask(load_file(before / "mask.safetensors")), index)
        if pruning.rewind != "none":
            source = "start" if pruning.rewind == "initial" else "rewind"
            self.network.load_state_dict(load_file(self.folder / f"{source}.safetensors"))
        mask.apply(self.network)
        return mask

    def _round(self, index: int) -> None:
        settings, steps = self.config.training, self.config.steps_of_round(index)
        mask = self._begin(index)
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        state_file, first = self.folder / "state.pt", 0
        losses: list[float] = []
        if state_file.exists():
            state = torch.load(state_file, weights_only=True)
            if state["round"] == index:
                self.network.load_state_dict(state["network"])
                optimizer.load_state_dict(state["optimizer"])
                first, losses = state["step"], state["losses"]
        if self.engine == "fused":
            fuse(self.network, mask)
        began, pace = time.monotonic(), 0.0
        durations: list[float] = []
        with ThreadPoolExecutor(1) as pool:  # the next batch is drawn while this one trains
            upcoming = pool.submit(self.data.batch, index, first)
            for step in range(first, steps):
                degraded, clean = upcoming.result()
                if step + 1 < steps:
                    upcoming = pool.submit(self.data.batch, index, step + 1)
                rate = learning_rate(step, steps, settings.learning_rate, settings.warmup_steps)
                step_began = time.perf_counter()
                losses.append(self._step(optimizer, mask, degraded, clean, rate))
                durations.append(time.perf_counter() - step_began)
                done = step + 1
                if index == 0 and done == self.config.pruning.rewind:
                    save_weights(self.folder / "rewind.safetensors", self.network)
                report: dict[str, Any] = {
                    "round": index,
                    "step": done,
                    "steps": steps,
                    "loss": losses[-1],
                    "density": mask.density,
                }
                if done % settings.validate_every == 0 or done == steps:
                    report["loss"], losses = sum(losses) / len(losses), []
                    report["seconds_per_step"], durations = median(durations), []
                    report["psnr"] = self.validate()
                pace = (time.monotonic() - began) / (done - first)
                report["seconds_left"] = pace * (self._steps_before[-1] - self._steps_before[index] - done)
                self._tell(report)
                if done % settings.save_every == 0 and done < steps:
                    state = {"round": index, "step": done, "losses": losses, "network": self.network.state_dict()}
                    state["optimizer"] = optimizer.state_dict()
                    write_whole(state_file, partial(torch.save, state))
        self._finish(index, mask, {k: report[k] for k in ("round", "steps", "loss", "density", "psnr")})

    def _step(
        self, optimizer: torch.optim.Optimizer, mask: Mask, degraded: Tensor, clean: Tensor, rate: float
    ) -> float:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = F.l1_loss(self.network(degraded), clean)
        loss.backward()
        if self.engine == "reference":  # those of the fused kernels are zero already
            mask.apply_to_gradients(self.network)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.training.clip_norm)
        if not math.isfinite(norm.item()):
            raise UserError(
                f"{self.folder}: training diverged (loss {loss.item()}); lower training.learning_rate"
                f" ({self.config.training.learning_rate}) and start anew in another folder"
            )
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean PSNR in dB per task over the held-back images, of the 8-bit result."""
        self._restorer.network.load_state_dict(self.network.state_dict())
        result = {}
        for task, pairs in self.validation.items():
            scores = []
            for degraded, clean in pairs:
                restored = (self._restorer(degraded).clamp(0, 1) * 255).round() / 255
                scores.append(-10 * math.log10(max(F.mse_loss(restored, clean).item(), 1e-12)))
            result[task] = sum(scores) / len(scores)
        return result

    def _tell(self, report: dict[str, Any]) -> None:
        if "psnr" in report:
            with (self.folder / "log.jsonl").open("ab+") as stream:
                stream.seek(max(0, stream.tell() - 1))
                broken = stream.read() not in (b"", b"\n")  # a line that a kill cut short
                stream.write(b"\n" * broken + json.dumps(report).encode() + b"\n")
        self._report(report)

    def _finish(self, index: int, mask: Mask, metrics: dict[str, Any]) -> None:
        final = self.round_folder(index)
        part = final.with_name(f"{final.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        save_weights(part / "weights.safetensors", self.network)
        write_whole(part / "mask.safetensors", save({k: v.contiguous() for k, v in mask.alive.items()}))
        (part / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        part.rename(final)
        (self.folder / "state.pt").unlink(missing_ok=True)
