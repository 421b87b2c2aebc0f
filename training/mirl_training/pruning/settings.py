"""Define the sections ``pruning`` and ``regrow`` of a run's YAML file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mirl_sparse.choices import Choice
from mirl_training.settings import Fraction, Positive, Settings


class Criterion(Choice):
    """Name how weights are ranked: together, in each layer, by relative magnitude, or by worth per second.

    "random" is the control of studies: each layer keeps as many weights as by "layerwise", drawn by lot.
    """

    GLOBAL = "global"
    LAYERWISE = "layerwise"
    LAMP = "lamp"
    LATENCY = "latency"
    RANDOM = "random"


class PruningProtocol(Choice):
    """Name what is pruned and rewound: this project's default, or exactly what MIR-L's code does."""

    DEFAULT = "default"
    MIRL = "mirl"


class Rewind(Choice):
    """Name where surviving weights go back to, where it is not a step: their initial values, or nowhere."""

    INITIAL = "initial"
    NONE = "none"


class PruningSettings(Settings):
    """Prune by magnitude in rounds (Frankle & Carbin, ICLR 2019; MIR-L, section 3).

    Each round removes ``rate`` of the weights that the round before left, so that (1 - rate)^rounds remain,
    and then trains.

    The protocol "mirl" follows MIR-L's code. It prunes every parameter named ``weight``, the gains of norms
    too, by percentiles over the weights that are not zero, and the output layer at half the rate where it is
    ``layerwise``. It rewinds weights and biases, not prompts and temperatures. The default prunes
    convolutions and linear layers, exactly to one weight, and rewinds everything.

    The criterion ``latency`` has no rate but a goal, ``speedup``; each round takes its part of it. It ranks
    by what a weight, and a whole hidden channel, adds to the loss per second, not by magnitudes
    (`prune_to_latency`).

    Attributes:
        protocol: Protocol that says what is pruned and rewound.
        criterion: Criterion that ranks the weights.
        rate: Share of the weights left that a round removes.
        speedup: The factor by which the last network is to be faster than the first one, by the cost model of
            the machine that the run began on.
        rounds: Number of rounds after the dense one.
        round_steps: Steps (epochs where training counts these) of each round; None for training's.
        final_steps: The same of the last round.
        learning_rate: The peak of these rounds; None for training's.
        rewind: Values that survivors are put back to: "initial" values, the values after a step (or epoch) of
            round 0, or "none" (they stay as trained: gradual pruning).
        settled: Share of the weights. A round but the last ends early once no two of the last five masks that
            it would leave, drawn at each validation, differ in more than this share (early-bird tickets: You
            et al., ICLR 2020, section 3.2).
        exempt: Tensors whose name matches one of these patterns (shell wildcards) keep every weight, but
            count in the density.
    """

    protocol: PruningProtocol = PruningProtocol.DEFAULT
    criterion: Criterion = Criterion.GLOBAL
    rate: Fraction = 0.2
    speedup: Annotated[float, Field(gt=1)] | None = None
    rounds: Annotated[int, Field(ge=0)] = 10
    round_steps: Positive | None = None
    final_steps: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    rewind: Rewind | Positive = Rewind.INITIAL
    settled: Fraction | None = None
    exempt: tuple[str, ...] = ()


class Regrowth(Settings):
    """Bring pruned weights back from another network.

    Attributes:
        source: A network, named as ``start`` is. Where the start has zeros and the source has not, they take
            its values.
        layers: Patterns (shell wildcards) of the names of the layers that get weights back.
    """

    source: str
    layers: tuple[str, ...] = Field(("*",), min_length=1)
