"""Find a ticket of any network: `prune` trains it, and removes weights in rounds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from mirl_kernels.core import cpu
from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.errors import UserError
from mirl_training.engine.fused import unfuse
from mirl_training.engine.selection import TrainingEngine, choose_engine
from mirl_training.engine.settings import TrainingSettings
from mirl_training.engine.sparse_layers import use_dense_layers
from mirl_training.engine.trainer import Computation, Diverged, Trainer
from mirl_training.pruning import (
    Clock,
    Criterion,
    LayerClock,
    Mask,
    Rewind,
    prune_to_density,
    prune_to_latency,
)
from mirl_training.runs.schedule import learning_rate

_IMPORTANCE_BATCHES = 48  # that the importance of weights is a mean over, for the criterion latency


@dataclass(frozen=True)
class RoundResult:
    """Say what a round left behind.

    Attributes:
        index: Index of the round; 0 is the dense one.
        density: Density of the prunable weights.
        loss: Mean loss of the last tenth of the round's steps; NaN without steps.
        seconds: For the criterion latency, what the layers take for the example, by the cost model.
    """

    index: int
    density: float
    loss: float
    seconds: float | None = None


@dataclass(frozen=True)
class PrunedNetwork:
    """Hold what `prune` found.

    Attributes:
        network: The pruned network, in eval mode; its zeros are the mask.
        mask: The mask of its prunable weights.
        rounds: What each round left behind.
    """

    network: nn.Module
    mask: Mask
    rounds: tuple[RoundResult, ...]


Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Rounds:
    """Say how many rounds there are, and how long they are.

    Attributes:
        count: Rounds of pruning after the dense one; 1 prunes at once.
        dense_steps: Steps of the dense round; 0 for a network that is trained already.
        steps: Steps of each round of pruning.
        rewind: "initial" puts the weights that are left back to their first values, a number to those after
            so many steps of the dense round, "none" leaves them as trained (gradual pruning).
    """

    count: int = 10
    dense_steps: int = 1000
    steps: int = 1000
    rewind: Rewind | int | str = Rewind.INITIAL


def prune(
    network: nn.Module,
    data: Batches,
    *,
    criterion: str = "global",
    density: float = 0.1,
    speedup: float | None = None,
    example: Tensor | tuple[Any, ...] | None = None,
    rounds: Rounds | int = 10,
    training: TrainingSettings | None = None,
    loss: Loss | None = None,
    exempt: tuple[str, ...] = (),
    engine: str = "auto",
    on_round: Callable[[RoundResult], None] = lambda result: None,
) -> PrunedNetwork:
    """Train a network and prune it in rounds (Frankle & Carbin, ICLR 2019), whatever its architecture is.

    `mirl_sparse.sparsify` makes the result fast.

    Args:
        network: The network, which takes an image and gives one. A copy is trained, all its parameters, on
            the device that it is on. Without dense steps, weights that are zero stay zero.
        data: Batches of (degraded, clean), each (B, C, H, W), that the network and the loss take. It is
            started again whenever it ends, so give a list or a DataLoader, not a generator.
        criterion: How weights are ranked: "global", "layerwise", "lamp", "latency", or "random".
        density: Share of the prunable weights (those of convolutions and linear layers) that the last round
            keeps, 0 to 1. Each round before keeps the same share of the round before it.
        speedup: For "latency", in the place of the density: how many times as fast the network's layers are
            to be on this machine, by the cost model of `sparsify`, for the example.
        example: For "latency", the input, or the tuple of arguments, that the time is counted for.
        rounds: The rounds, or their number.
        training: How a round is optimised: loss, optimizer, learning rate and its warm-up, decay, clipping,
            averages, parts of a batch, precision. The other settings are not used.
        loss: Loss of (what the network gives, clean); by default the one of ``training``, L1, of two tensors
            of one shape.
        exempt: Patterns (shell wildcards) of the names of weights that are never pruned. Exempt the first and
            last layers of small networks.
        engine: "fused" trains sparse layers on the kernels for their surviving weights, "reference" all in
            PyTorch; "auto" is "fused" in float32 on a CPU.
        on_round: Is called after each round.

    Returns:
        The pruned network.

    Raises:
        UserError: An argument is wrong, data end before a batch, a gradient is not finite, or the density or
            the speed-up cannot be reached.

    Examples:
        >>> import torch
        >>> from mirl_training import Rounds, prune
        >>> network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
        >>> clean = torch.rand(4, 3, 16, 16)
        >>> batches = [((clean + 0.1 * torch.randn_like(clean)).clamp(0, 1), clean)]
        >>> ticket = prune(network, batches, density=0.25, rounds=Rounds(2, dense_steps=3, steps=3))
        >>> [round(r.density, 2) for r in ticket.rounds]
        [1.0, 0.5, 0.25]
    """
    schedule = rounds if isinstance(rounds, Rounds) else Rounds(rounds)
    _check(criterion, density, speedup, example, schedule)
    if isinstance(exempt, str):
        raise UserError(f'exempt is "{exempt}"; expected a tuple of patterns')
    search = _Search(network, data, training or TrainingSettings(), loss, engine)
    if schedule.dense_steps == 0:
        search.mask = Mask.of(search.network)
    goal = _latency(search, speedup, example, exempt) if speedup is not None else None
    begin = search.mask.density
    if goal is None:
        if density >= begin:
            raise UserError(f"density is {density}; expected less than the network has, {begin:.3g}")
        prune_to_density(search.network, search.mask, density, criterion, exempt)  # can it be reached?
    results: list[RoundResult] = []
    for index in range(schedule.count + 1):
        if index:
            if goal:
                mask = goal.prune(search.mask, index / schedule.count)
            else:
                kept = begin * (density / begin) ** (index / schedule.count)
                mask = prune_to_density(search.network, search.mask, kept, criterion, exempt)
            search.begin(mask, schedule.rewind)
        mean = search.train(schedule.steps if index else schedule.dense_steps, _rewound_step(schedule, index))
        seconds = goal.clock.seconds(search.mask) if goal else None
        results.append(RoundResult(index, search.mask.density, mean, seconds))
        on_round(results[-1])
    return PrunedNetwork(search.result(), search.mask, tuple(results))


def _check(
    criterion: str,
    density: float,
    speedup: float | None,
    example: object,
    rounds: Rounds,
) -> None:
    if criterion not in list(Criterion):
        raise UserError(f"criterion is {criterion!r}; expected one of {Criterion.names()}")
    if (criterion == Criterion.LATENCY) != (speedup is not None):
        raise UserError("the criterion latency, and no other, takes a speedup; give both or neither")
    if speedup is not None and (not speedup > 1 or example is None):
        raise UserError(f"speedup is {speedup}; expected more than 1, and an example input to count it for")
    if not 0 < density < 1:
        raise UserError(f"density is {density}; expected a share between 0 and 1")
    if rounds.count < 1 or rounds.steps < 0 or rounds.dense_steps < 0:
        raise UserError(f"rounds are {rounds}; expected one or more of them, of 0 or more steps")
    if isinstance(rounds.rewind, int) and not 0 < rounds.rewind <= rounds.dense_steps:
        raise UserError(
            f"rewind is {rounds.rewind}; expected a step of the dense round, 1 to {rounds.dense_steps},"
            f" or one of {Rewind.names()}"
        )
    if isinstance(rounds.rewind, str) and rounds.rewind not in list(Rewind):
        raise UserError(f"rewind is {rounds.rewind!r}; expected a step or one of {Rewind.names()}")


def _rewound_step(rounds: Rounds, index: int) -> int | None:
    """Return the step of a round whose weights later rounds go back to; None for no step of this round."""
    return rounds.rewind if index == 0 and isinstance(rounds.rewind, int) else None


class _Search:
    """Train a copy of a network round by round."""

    def __init__(
        self,
        network: nn.Module,
        data: Batches,
        training: TrainingSettings,
        loss: Loss | None,
        engine: str,
    ) -> None:
        for name, module in network.named_modules():
            if not isinstance(getattr(module, "weight", None), (nn.Parameter, type(None))):
                raise UserError(
                    f"{name or type(module).__name__}: its weight is computed from others (a parametrization,"
                    " weight_norm, or a mask of torch.nn.utils.prune); make it permanent before"
                )
        self.network = copy.deepcopy(network).train().requires_grad_(True)
        self.mask = Mask.full(self.network)
        if not self.mask.alive:
            raise UserError(f"{type(network).__name__} has no convolution and no linear layer to prune")
        self._training, self._data = training, data
        self._device = next(self.network.parameters()).device
        precision = training.precision_on(self._device.type)
        chosen, _ = choose_engine(engine, self._device.type, precision)
        self._computation = Computation(TrainingEngine(chosen), distance=loss)
        self._rewound = _copied(self.network.state_dict())
        self._batches = self._endless()

    def begin(self, mask: Mask, rewind: Rewind | int | str) -> None:
        """Take the mask of a round, and put the weights that are left back to where they are rewound."""
        self.mask = mask
        if rewind != Rewind.NONE:
            self.network.load_state_dict(self._rewound)
        mask.apply(self.network)

    def train(self, steps: int, rewound_step: int | None) -> float:
        """Train a round; return the mean loss of its last tenth."""
        trainer, losses = self._trainer(), list[float]()
        for step in range(steps):
            degraded, clean = next(self._batches)
            rate = learning_rate(step, steps, self._training.learning_rate, self._training.warmup_steps)
            try:
                losses.append(trainer.step(degraded.to(self._device), clean.to(self._device), rate))
            except Diverged as diverged:
                raise UserError(
                    f"a gradient is not finite in step {step + 1} of a round ({diverged}); lower the"
                    " learning rate, or look for values that are not finite in the data"
                ) from None
            if step + 1 == rewound_step:
                self._rewound = _copied(self.network.state_dict())
        self.network.load_state_dict(_copied(trainer.weights))
        last = losses[-max(1, steps // 10) :]
        return sum(last) / len(last) if last else float("nan")

    def importance(self) -> dict[str, Tensor]:
        """Return `Trainer.importance` by the batches that would come next."""
        self.network.eval()  # statistics of batches stay as they are
        try:
            importance = self._trainer().importance(list(islice(self._batches, _IMPORTANCE_BATCHES)))
        except Diverged:
            raise UserError("a gradient is not finite; look for such values in the data") from None
        self.network.train()
        return {name: values.cpu() for name, values in importance.items()}

    def result(self) -> nn.Module:
        """Return the network without what training put into it."""
        if isinstance(self.network, PromptIR):
            unfuse(self.network)
        use_dense_layers(self.network)
        return self.network.eval().requires_grad_(False)

    def _trainer(self) -> Trainer:
        return Trainer(self.network, self.mask, self._training, self._computation)

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            count = -1
            for count, batch in enumerate(self._data):  # noqa: B007  # asked for below
                yield batch
            if count < 0:
                raise UserError(
                    "data end before a batch; give an iterable that can be started again, such as a list or a"
                    " DataLoader"
                )


@dataclass
class _Latency:
    """Prune to parts of a speed-up."""

    search: _Search
    clock: Clock
    speedup: float
    exempt: tuple[str, ...]

    def __post_init__(self) -> None:
        self._first = self.clock.seconds(self.search.mask)

    def prune(self, mask: Mask, part: float) -> Mask:
        budget = self._first * self.speedup**-part
        on_cpu = mask.to(torch.device("cpu"))
        return prune_to_latency(self.clock, self.search.importance(), on_cpu, budget, self.exempt)


def _latency(
    search: _Search, speedup: float, example: Tensor | tuple[Any, ...] | None, exempt: tuple[str, ...]
) -> _Latency:
    from mirl_sparse.performance.prices import cost_model
    from mirl_sparse.sparsification.cpu import CPU_BLOCKS
    from mirl_sparse.sparsification.layers import CPU_LAYERS

    cpu.load_library()
    arguments = example if isinstance(example, tuple) else (example,)
    network = copy.deepcopy(search.network).cpu()
    return _Latency(
        search, LayerClock(network, arguments, cost_model(), CPU_LAYERS, CPU_BLOCKS), speedup, exempt
    )


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a state dict; a module's extra state may be anything."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }
