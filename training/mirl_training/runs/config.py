"""The settings of a run: a YAML file, checked before anything is read or trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from mirl_sparse.architectures.promptir.config import ConfigError, PromptIRConfig
from mirl_training.data.recipes import Recipe, SourceName

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Patch = Annotated[int, Field(ge=8, multiple_of=8)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _folders(value: Any) -> Any:
    return (value,) if isinstance(value, str) else () if value is None else value


Folders = Annotated[tuple[str, ...], BeforeValidator(_folders)]
TASKS = ("noise15", "noise25", "noise50", "rain", "haze", "fog", "jpeg", "jpeg10", "social")


class DataSettings(_Settings):
    """Where the photos are, relative to the root given to the command, and how tasks are mixed.

    ``clean`` are one or more folders of photos; ``haze``, ``rain`` and ``real`` (noise of cameras) such with
    ``input/NAME_hazy.*`` (``NAME_rainy.*``, ``NAME_noisy.*``) and ``target/NAME_gt.*``. ``tasks`` are the odds of each task
    in a batch, or, where training counts ``epochs``, how often each photo of the task is seen in one. A task is one of the
    ``recipes``, by its name, or one of `TASKS`: "noise15", "noise25" and "noise50" are MIR-L's, "haze" draws from those pairs
    and "rain" too, if there are any, or else puts streaks over the clean photos; "fog" hazes these, "jpeg" compresses them
    ("jpeg10" always at quality 10) and "social" does what sharing a photo again and again does. The last
    ``validation_images`` of each kind are kept for validation. Decoded photos take ``memory`` GiB at most; the others are
    decoded when they are drawn.
    """

    clean: Folders = Field(min_length=1)
    rain: Folders = ()
    haze: Folders = ()
    real: Folders = ()
    recipes: dict[str, Recipe] = {}
    tasks: dict[str, Positive] = Field(min_length=1)
    validation_images: Positive = 6
    memory: Annotated[float, Field(ge=0)] = 4

    @model_validator(mode="after")
    def _tasks_are_known(self) -> DataSettings:
        if both := sorted(self.recipes.keys() & set(TASKS)):
            raise ValueError(f"recipes has {both[0]!r}, which is a task of its own; expected another name")
        for task in self.tasks:
            if task not in self.recipes and task not in TASKS:
                known = ", ".join((*self.recipes, *TASKS))
                raise ValueError(f"tasks asks for {task!r}; expected one of {known}")
            source = self.source_of(task)
            if not getattr(self, source):
                raise ValueError(f"tasks asks for {task!r}, but {source} names no folder")
        return self

    def source_of(self, task: str) -> SourceName:
        """Return which folders a task draws from: those of its recipe; of `TASKS` pairs of its own, or else clean photos."""
        if task in self.recipes:
            return self.recipes[task].source
        return "haze" if task == "haze" else "rain" if task == "rain" and self.rain else "clean"


class Stage(_Settings):
    """Batches of another shape, from a part of every round on."""

    after: Fraction
    batch_size: Positive
    patch_size: Patch


class TrainingSettings(_Settings):
    """Optimisation of one round: ``steps`` or ``epochs`` long, linear warm-up, then half a cosine, which the
    learning rate follows from step to step or, with ``epochs``, from epoch to epoch.

    ``loss`` "l1" is MIR-L's, the mean absolute error; "psnr" minus the mean PSNR of a batch's images (Chen et al., HINet, CVPRW
    2021), which weighs each image by its own error: by "l1" haze, which shifts whole images, drowns fine noise. ``optimizer``
    "muon" steps whole matrices by Muon, and everything else by AdamW, as "adamw" does throughout; of a pruned matrix, what a
    step puts where the mask is is removed again. ``ema`` is the decay per step of the moving average of the weights, which then is what a round is validated
    by and leaves behind. ``progressive`` are later stages of a round with other batches (Restormer, section 3.3): attention
    sees statistics of whole images when it restores, which small patches do not prepare it for. A batch is computed in
    ``accumulate`` parts, to save memory; in "bfloat16" where PyTorch's autocast thinks that safe, with weights in float32 ("auto":
    bfloat16 on a GPU, float32 on a CPU, so that one run may go on on either). Where a
    ``teacher`` is named (as ``start`` is), that part of the loss is the distance from what it restores.
    """

    steps: Positive | None = None
    epochs: Positive | None = None
    loss: Literal["l1", "psnr"] = "l1"
    optimizer: Literal["adamw", "muon"] = "adamw"
    batch_size: Positive = 8
    patch_size: Patch = 64
    progressive: tuple[Stage, ...] = ()
    accumulate: Positive = 1
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    ema: Fraction | None = None
    teacher: str | None = None
    teacher_weight: Fraction = 0.5
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    validate_every: Positive = 1000
    save_every: Positive = 500
    seed: Annotated[int, Field(ge=0)] = 0

    def computes_in(self, device: str) -> Literal["float32", "bfloat16"]:
        """Return the precision of a step on a device, "cpu" or "cuda"."""
        if self.precision == "auto":
            return "bfloat16" if device == "cuda" else "float32"
        return self.precision

    @property
    def shapes(self) -> list[tuple[float, int, int]]:
        """From which part of a round on batches have which (batch size, patch size), in order."""
        later = sorted((s.after, s.batch_size, s.patch_size) for s in self.progressive)
        return [(0.0, self.batch_size, self.patch_size), *later]

    def shape(self, step: int, steps: int) -> tuple[int, int]:
        """(batch size, patch size) of one step of a round of so many."""
        return [(size, patch) for after, size, patch in self.shapes if step >= after * steps][-1]


class PruningSettings(_Settings):
    """Iterative magnitude pruning (Frankle & Carbin, ICLR 2019; MIR-L, section 3).

    ``protocol`` "mirl" is that of MIR-L's code in what it prunes (every parameter named ``weight``, the gains of norms too), how
    (by percentiles over the weights that are not zero, the output layer at half the rate where ``layerwise``) and what it
    rewinds (weights and biases, not prompts and temperatures). The default prunes convolutions and linear layers, exact to
    one weight, and rewinds everything.

    Each of ``rounds`` removes ``rate`` of the weights that the round before left, so that
    (1 - rate)^rounds remain, then trains ``round_steps`` (the last one ``final_steps``; epochs where training counts these).
    ``rewind`` puts the survivors back to their initial values, to those after the given step (or epoch) of
    round 0, or leaves them as trained ("none": gradual pruning). Tensors whose name matches an
    ``exempt`` pattern (shell wildcards) keep every weight, but count in the density.

    ``learning_rate`` is the peak of these rounds where it differs from training's.

    With ``settled`` a round but the last ends early once the mask that it would leave does not change any more: when of the
    last five, drawn at each validation, no two differ in more than that share of the weights (early-bird tickets: You et
    al., ICLR 2020, section 3.2).

    The criterion ``latency`` has no rate but a goal: after the last round the network is to restore ``speedup`` times as
    fast as the first one, by the cost model of the machine that the run began on; each round takes its part of that. It ranks
    by what a weight, and a whole hidden channel, adds to the loss per second, not by magnitudes (``latency.py``).
    """

    protocol: Literal["default", "mirl"] = "default"
    criterion: Literal["global", "layerwise", "lamp", "latency"] = "global"
    rate: Fraction = 0.2
    speedup: Annotated[float, Field(gt=1)] | None = None
    rounds: Annotated[int, Field(ge=0)] = 10
    round_steps: Positive | None = None
    final_steps: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    rewind: Literal["initial", "none"] | Positive = "initial"
    settled: Fraction | None = None
    exempt: tuple[str, ...] = ()


class Regrowth(_Settings):
    """Pruned weights that come back: where the start has zeros in a layer whose name matches one of ``layers`` (shell wildcards), and
    ``source``, named as ``start`` is, has not, they take its values."""

    source: str
    layers: tuple[str, ...] = Field(("*",), min_length=1)


class RunConfig(_Settings):
    """One run: the network, the data, how a round trains, and how the rounds prune.

    Either ``network`` describes a new one, or ``start`` names a checkpoint, a ticket file or a shipped
    ticket whose weights are trained further; its zeros stay, but for what is to ``regrow``, and count in the density.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    network: PromptIRConfig | None = None
    start: str | None = None
    regrow: Regrowth | None = None
    data: DataSettings
    training: TrainingSettings
    pruning: PruningSettings = PruningSettings()

    @field_validator("network", mode="before")
    @classmethod
    def _network(cls, value: Any) -> PromptIRConfig | None:
        return value if value is None or isinstance(value, PromptIRConfig) else PromptIRConfig.from_dict(value)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        training, pruning = self.training, self.pruning
        if (self.network is None) == (self.start is None):
            raise ConfigError("expected either network (a new one) or start (a checkpoint or ticket to go on from)")
        if self.regrow and self.start is None:
            raise ConfigError("regrow is given without start; expected a start, some of whose zeros it ends")
        if (pruning.criterion == "latency") != (pruning.speedup is not None):
            raise ConfigError(
                f"pruning.criterion is {pruning.criterion} and pruning.speedup {pruning.speedup}; expected a speedup"
                " with the criterion latency, and with no other"
            )
        if (training.steps is None) == (training.epochs is None):
            raise ConfigError("training: expected either steps or epochs")
        if training.epochs and (training.warmup_steps or training.progressive):
            raise ConfigError(
                "training counts epochs; expected warmup_epochs, not warmup_steps, and nothing progressive"
            )
        if training.steps and training.warmup_epochs:
            raise ConfigError("training counts steps; expected warmup_steps, not warmup_epochs")
        if isinstance(pruning.rewind, int) and pruning.rewind > (training.steps or training.epochs or 0):
            raise ConfigError(
                f"pruning.rewind is {pruning.rewind}; expected at most training.steps or .epochs"
                f" ({training.steps or training.epochs})"
            )
        warmup = training.warmup_steps or training.warmup_epochs
        for index in range(pruning.rounds + 1):
            if warmup and warmup >= self.length_of_round(index):
                raise ConfigError(
                    f"round {index} is {self.length_of_round(index)} {'steps' if training.steps else 'epochs'} long, and"
                    f" training.warmup_{'steps' if training.steps else 'epochs'} {warmup}; expected a shorter warm-up"
                )
        smallest = min(size for _, size, _ in training.shapes)
        if smallest < training.accumulate:
            raise ConfigError(
                f"a batch of {smallest} cannot be computed in training.accumulate ({training.accumulate}) parts"
            )
        if pruning.criterion == "latency" and not pruning.rounds:
            raise ConfigError("pruning.criterion is latency with 0 rounds; expected at least one")
        if pruning.protocol == "mirl" and (pruning.exempt or pruning.criterion not in ("global", "layerwise")):
            raise ConfigError(
                "pruning.protocol is mirl, which exempts nothing; expected the criterion global or layerwise"
            )
        return self

    def length_of_round(self, index: int) -> int:
        """How many steps, or epochs where training counts these, round ``index`` trains; round 0 is the dense one."""
        p = self.pruning
        length = self.training.steps or self.training.epochs
        assert length is not None
        if index > 0:
            length = p.round_steps or length
            if index == p.rounds:
                length = p.final_steps or length
        return length

    def to_dict(self) -> dict[str, Any]:
        """As read from YAML, defaults filled in; equal runs have equal dictionaries."""
        network = self.network.to_dict() if self.network else None
        return self.model_dump(mode="json", exclude={"network"}) | {"network": network}

    def _drawn(self) -> str:
        """All that decides what is trained. As text, since the order of the tasks does, too."""
        values = self.to_dict()
        del values["data"]["memory"], values["training"]["save_every"]
        if values["regrow"] is None:  # as runs are named that know nothing of it
            del values["regrow"]
        return json.dumps(values)

    def draws_as(self, other: RunConfig) -> bool:
        """Whether both train the very same: they may differ in the memory for photos and in how often a state is saved."""
        return self._drawn() == other._drawn()

    @property
    def digest(self) -> str:
        """Eight digits that tell runs apart that do not train the same."""
        return hashlib.sha256(self._drawn().encode()).hexdigest()[:8]


def load_config(path: Path) -> RunConfig:
    """Read a run's YAML file; ConfigError says in one line what is wrong with it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}; expected settings such as network, data, training")
    try:
        return RunConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "config"
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    except (ConfigError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path}: {error}") from None
