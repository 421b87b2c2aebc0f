"""Read the settings of a run from a YAML file, and check them before anything is read or trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from mirl_sparse.architectures.promptir import ConfigError, PromptIRConfig
from mirl_training.data.settings import DataSettings
from mirl_training.engine.settings import TrainingSettings
from mirl_training.pruning.settings import Criterion, PruningProtocol, PruningSettings, Regrowth
from mirl_training.settings import Settings


class RunConfig(Settings):
    """Describe one run: the network, the data, how a round trains, and how the rounds prune.

    Attributes:
        architecture: Name of the class of a new network as spandrel has it, such as "NAFNet"; None for
            PromptIR, and with ``start``.
        network: Config of a new PromptIR, or the arguments of another class; None with ``start``.
        start: Name of a checkpoint, a ticket file or a shipped ticket, whose weights are trained further. Its
            zeros stay, but for what is to ``regrow``, and count in the density. None with ``network``.
        regrow: Zeros of the start that come back.
        data: The photos.
        training: Settings of the training of each round.
        pruning: The rounds after the dense one.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    architecture: str | None = None
    network: PromptIRConfig | dict[str, Any] | None = None
    start: str | None = None
    regrow: Regrowth | None = None
    data: DataSettings
    training: TrainingSettings
    pruning: PruningSettings = PruningSettings()

    @field_validator("architecture")
    @classmethod
    def _architecture(cls, name: str | None) -> str | None:
        return None if name == "PromptIR" else name

    @field_validator("network", mode="before")
    @classmethod
    def _network(cls, value: Any, info: ValidationInfo) -> Any:
        is_read = value is None or isinstance(value, PromptIRConfig)
        return value if is_read or info.data.get("architecture") else PromptIRConfig.from_dict(value)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if (self.network is None) == (self.start is None):
            raise ConfigError(
                "expected either network (a new one) or start (a checkpoint or ticket to go on from)"
            )
        if self.architecture and self.network is None:
            raise ConfigError(
                f"architecture is {self.architecture} without network; expected the arguments of its class,"
                " or {} for its defaults (start says its architecture itself)"
            )
        if self.regrow and self.start is None:
            raise ConfigError("regrow is given without start; expected a start, some of whose zeros it ends")
        pruning = self.pruning
        if (pruning.criterion == Criterion.LATENCY) != (pruning.speedup is not None):
            raise ConfigError(
                f"pruning.criterion is {pruning.criterion} and pruning.speedup {pruning.speedup}; expected a"
                " speedup with the criterion latency, and with no other"
            )
        self._check_lengths()
        smallest = min(size for _, size, _ in self.training.shapes)
        if smallest < self.training.accumulate:
            raise ConfigError(
                f"a batch of {smallest} cannot be computed in training.accumulate"
                f" ({self.training.accumulate}) parts"
            )
        if pruning.criterion == Criterion.LATENCY and not pruning.rounds:
            raise ConfigError("pruning.criterion is latency with 0 rounds; expected at least one")
        is_mirl = pruning.protocol == PruningProtocol.MIRL
        if is_mirl and (pruning.exempt or pruning.criterion not in (Criterion.GLOBAL, Criterion.LAYERWISE)):
            raise ConfigError(
                "pruning.protocol is mirl, which exempts nothing; expected the criterion global or layerwise"
            )
        return self

    def _check_lengths(self) -> None:
        training, pruning = self.training, self.pruning
        if (training.steps is None) == (training.epochs is None):
            raise ConfigError("training: expected either steps or epochs")
        if training.epochs and (training.warmup_steps or training.progressive):
            raise ConfigError(
                "training counts epochs; expected warmup_epochs, not warmup_steps, and nothing progressive"
            )
        if training.steps and training.warmup_epochs:
            raise ConfigError("training counts steps; expected warmup_steps, not warmup_epochs")
        length = training.steps or training.epochs or 0
        if isinstance(pruning.rewind, int) and pruning.rewind > length:
            raise ConfigError(
                f"pruning.rewind is {pruning.rewind}; expected at most training.steps or .epochs ({length})"
            )
        warmup, unit = (
            training.warmup_steps or training.warmup_epochs,
            "steps" if training.steps else "epochs",
        )
        for index in sorted({0, min(1, pruning.rounds), pruning.rounds}):  # those between are alike
            if warmup and warmup >= self.length_of_round(index):
                raise ConfigError(
                    f"round {index} is {self.length_of_round(index)} {unit} long, and"
                    f" training.warmup_{unit} {warmup}; expected a shorter warm-up"
                )

    def length_of_round(self, index: int) -> int:
        """Return how many steps, or epochs, a round trains; round 0 is the dense one."""
        pruning = self.pruning
        length = self.training.steps or self.training.epochs
        assert length is not None
        if index > 0:
            length = pruning.round_steps or length
            if index == pruning.rounds:
                length = pruning.final_steps or length
        return length

    def peak_of_round(self, index: int) -> float:
        """Return the highest learning rate of a round."""
        return (self.pruning.learning_rate if index else None) or self.training.learning_rate

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as read from YAML, defaults filled in; equal runs have equal dictionaries."""
        network = self.network.to_dict() if isinstance(self.network, PromptIRConfig) else self.network
        return self.model_dump(mode="json", exclude={"network"}) | {"network": network}

    def draws_as(self, other: RunConfig) -> bool:
        """Return whether both train the very same.

        They may differ in the memory for photos and in how often a state is saved.
        """
        return self._drawn() == other._drawn()

    @property
    def digest(self) -> str:
        """Return eight hexadecimal digits that tell runs apart that do not train the same."""
        return hashlib.sha256(self._drawn().encode()).hexdigest()[:8]

    def _drawn(self) -> str:
        """Return all that decides what is trained; as text, since the order of the tasks does, too."""
        values = self.to_dict()
        del values["data"]["memory"], values["training"]["save_every"]
        # Runs from before these settings keep their digest.
        if values["regrow"] is None:
            del values["regrow"]
        if values["architecture"] is None:
            del values["architecture"]
            if values["network"] and values["network"]["unshuffle"] == 1:
                del values["network"]["unshuffle"]
        for name in ("psnr_ceiling", "harm_weight"):
            if values["training"][name] == TrainingSettings.model_fields[name].default:
                del values["training"][name]
        return json.dumps(values)


class _Loader(yaml.SafeLoader):
    """Read YAML as SafeLoader does, and refuse a name that stands twice in a section."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode):
                if name.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"a second {name.value}; expected one", problem_mark=name.start_mark
                    )
                seen.add(name.value)
        return super().construct_mapping(node, deep)


def _names(settings: type[Settings]) -> set[str]:
    """Return the names of all settings of a class and its subclasses."""
    return set(settings.model_fields).union(*map(_names, settings.__subclasses__()))


def load_config(path: Path) -> RunConfig:
    """Read the settings of a run.

    Raises:
        ConfigError: The file cannot be read or a setting does not serve; one line that names the file.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: holds {type(values).__name__}; expected settings such as network, data, training"
        )
    try:
        return RunConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "config"
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            like = get_close_matches(str(first["loc"][-1]), _names(Settings), 1)
            message = "no such setting" + (f"; did you mean {like[0]}?" if like else "")
        raise ConfigError(f"{path}: {where}: {message}") from None
    except (ConfigError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None
