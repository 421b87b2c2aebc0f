"""Prune networks of several architectures by `mirl_training.prune`."""

from collections import Counter, defaultdict

import pytest
import torch
from torch import nn

from mirl_kernels.core import cpu
from mirl_kernels.core.cpu import Quantity
from mirl_sparse import UserError, sparsify
from mirl_sparse.architectures.promptir.network import TransformerBlock
from mirl_sparse.performance import prices
from mirl_sparse.performance.cost import CostModel
from mirl_training import Rounds, TrainingSettings, prune
from mirl_training.engine.sparse_layers import use_dense_layers, use_sparse_layers
from mirl_training.pruning import Mask, layer_clock

FAST = TrainingSettings(learning_rate=5e-3, weight_decay=0)


class Denoiser(nn.Module):
    """Convolutions with a batch norm, whose result is the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 3, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.layers(x)


class Restormer(nn.Module):
    """A block of Restormer's between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.block = TransformerBlock(12, heads=2, expansion=2)
        self.last = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(self.block(self.first(x)))


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.a, self.b = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.b.weight = self.a.weight
        self.last = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(self.b(self.a(self.first(x)).relu()))


class Gain(nn.Module):
    """A factor for each channel, named as weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 8, 1, 1), 1e-3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


ENDS = {Denoiser: ("layers.0.*", "layers.5.*"), Restormer: ("first.*", "last.*")}


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    clean = nn.functional.interpolate(
        torch.rand(6, 2, 3, 4, 4, generator=generator).flatten(0, 1), scale_factor=5
    )
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=generator)
    return list(zip(noisy.split(2), clean.split(2), strict=True))


def built(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


def error(network: nn.Module, batches: list) -> float:
    with torch.no_grad():
        return sum(float((network(noisy) - clean).square().mean()) for noisy, clean in batches)


@pytest.mark.parametrize("kind", [Denoiser, Restormer])
@pytest.mark.parametrize("criterion", ["global", "layerwise", "lamp"])
def test_a_ticket_of_any_network_learns_and_has_the_density(kind, criterion, batches):
    network = built(kind)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    told = []
    ticket = prune(
        network,
        batches,
        criterion=criterion,
        density=0.4,
        rounds=Rounds(2, 100, 100),
        training=FAST,
        on_round=told.append,
    )
    assert [round(r.density, 2) for r in ticket.rounds] == [1, 0.63, 0.4]
    assert list(ticket.rounds) == told
    assert Mask.of(ticket.network).density == pytest.approx(0.4, abs=0.01)
    assert error(ticket.network, batches) < 0.9 * error(nn.Identity(), batches)
    assert all(bool((value == before[name]).all()) for name, value in network.state_dict().items())
    assert not ticket.network.training


@pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")
@pytest.mark.parametrize("kind", [Denoiser, Restormer, Tied])
@pytest.mark.parametrize("training", [FAST, FAST.model_copy(update={"ema": 0.9, "optimizer": "muon"})])
def test_sparse_layers_train_to_what_dense_ones_do(kind, training, batches):
    tickets = [
        prune(built(kind), batches, density=0.3, rounds=Rounds(1, 5, 10), training=training, engine=engine)
        for engine in ("fused", "reference")
    ]
    for name, value in tickets[0].network.state_dict().items():
        torch.testing.assert_close(value, tickets[1].network.state_dict()[name], rtol=1e-3, atol=2e-4)
    network, mask = tickets[0].network, tickets[0].mask
    assert Mask.of(network).nnz <= mask.nnz
    assert not any("forward" in vars(m) for m in network.modules())
    use_sparse_layers(network, mask)
    assert any("forward" in vars(m) for m in network.modules())
    use_dense_layers(network)
    assert not any("forward" in vars(m) for m in network.modules())


def test_a_block_alone_and_blocks_that_share_weights_are_pruned(batches):
    features = [(torch.rand(1, 12, 16, 16), torch.rand(1, 12, 16, 16))]
    torch.manual_seed(0)
    block, other = TransformerBlock(12, heads=2, expansion=2), TransformerBlock(12, heads=2, expansion=2)
    other.attn.qkv.weight = block.attn.qkv.weight
    for network in (block, nn.Sequential(block, other)):
        ticket = prune(network, features, density=0.2, rounds=Rounds(1, 2, 2))
        assert ticket.rounds[-1].density == pytest.approx(0.2, abs=0.01)


def test_only_layers_are_pruned_and_zeros_of_a_trained_network_stay(batches):
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Gain(), nn.Conv2d(8, 3, 3, padding=1))
    assert set(Mask.full(network).alive) == {"0.weight", "2.weight"}
    first = prune(network, batches, density=0.4, rounds=Rounds(1, 2, 2))
    second = prune(first.network, batches, density=0.2, rounds=Rounds(2, 0, 2, "none"))
    assert [round(r.density, 2) for r in second.rounds] == [0.4, 0.28, 0.2]
    assert not any(bool((second.mask.alive[n] & ~keep).any()) for n, keep in first.mask.alive.items())
    with pytest.raises(UserError, match=r"expected less than the network has, 0\.4"):
        prune(first.network, batches, density=0.5, rounds=Rounds(1, 0, 2))


def test_a_ticket_is_rewound_to_where_it_is_asked_to(batches):
    network = built(Denoiser)
    for rewind in ("initial", 2, "none"):
        ticket = prune(network, batches, density=0.5, rounds=Rounds(1, 4, 0, rewind), training=FAST)
        trained = prune(network, batches, density=0.5, rounds=Rounds(1, 4, 0, "none"), training=FAST)
        same = {
            name: bool((value == trained.network.state_dict()[name]).all())
            for name, value in ticket.network.state_dict().items()
        }
        assert all(same.values()) == (rewind == "none")
        if rewind == "initial":
            weight = ticket.network.layers[0].weight
            first = network.layers[0].weight
            assert bool(((weight == first) | (weight == 0)).all())


@pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")
@pytest.mark.parametrize("kind", [Restormer, Tied])
def test_latency_reaches_its_speedup_by_the_cost_model(kind, batches, monkeypatch):
    # Entries of sparse rows cost most, and nothing is faster if it is dense.
    weights = defaultdict(lambda: 1e-9, {Quantity.ENTRY: 3e-8, Quantity.DENSE: 3e-8})
    monkeypatch.setattr(prices, "cost_model", lambda: CostModel(weights))
    monkeypatch.setattr(layer_clock, "dense_quantities", lambda layer, shape: Counter({"a": 10**12}))
    example = torch.rand(1, 3, 64, 64)
    network = built(kind)
    ticket = prune(
        network,
        batches,
        criterion="latency",
        speedup=1.3,
        example=example,
        rounds=Rounds(2, 4, 4),
        training=FAST,
        exempt=("first.*",),
    )
    seconds = [r.seconds for r in ticket.rounds]
    assert 1.3 <= seconds[0] / seconds[2] < 1.7  # matrices of this size become sparse at once
    assert seconds[0] / seconds[1] >= 1.3**0.5
    assert bool((ticket.network.first.weight != 0).all())
    sparse = sparsify(ticket.network, example)
    torch.testing.assert_close(sparse(example), ticket.network(example), rtol=1e-3, atol=1e-4)


def test_batches_may_come_from_a_loader_and_losses_from_the_caller(batches):
    loader = torch.utils.data.DataLoader(batches, batch_size=None, shuffle=True)
    losses = []

    def loss(restored, clean):
        losses.append(restored.shape)
        return nn.functional.mse_loss(restored, clean)

    prune(built(Denoiser), loader, density=0.5, rounds=Rounds(1, 8, 8), loss=loss)
    assert len(losses) == 16


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"criterion": "best"}, "criterion is 'best'"),
        ({"criterion": "latency"}, "latency, and no other, takes a speedup"),
        ({"speedup": 2.0}, "latency, and no other, takes a speedup"),
        ({"criterion": "latency", "speedup": 2.0}, "an example input"),
        ({"density": 1.5}, "density is 1.5"),
        ({"rounds": 0}, "expected one or more"),
        ({"rounds": Rounds(1, 4, 4, 5)}, "rewind is 5"),
        ({"rounds": Rounds(1, 4, 4, "late")}, "rewind is 'late'"),
        ({"exempt": ("none.*",)}, "matches no prunable weight"),
    ],
)
def test_wrong_arguments_are_refused(given, problem, batches):
    with pytest.raises(UserError, match=problem):
        prune(built(Denoiser), batches, **({"rounds": Rounds(1, 1, 1)} | given))


class Stages(nn.Module):
    """A network that gives the results of its stages, and has a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser, self.name = Denoiser(), "first"

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = self.denoiser(x)
        return [first, self.denoiser(first)]

    def get_extra_state(self) -> dict:
        return {"name": self.name}

    def set_extra_state(self, state: dict) -> None:
        self.name = state["name"]


def test_results_that_are_no_image_need_a_loss_of_the_callers(batches):
    torch.manual_seed(0)
    with pytest.raises(UserError, match="the network gives a list where the clean images are"):
        prune(Stages(), batches, density=0.5, rounds=Rounds(1, 2, 2))
    halves = [(degraded, clean[..., :8]) for degraded, clean in batches]
    with pytest.raises(UserError, match="expected a tensor of their shape"):
        prune(Denoiser(), halves, density=0.5, rounds=Rounds(1, 2, 2))

    def loss(stages: list[torch.Tensor], clean: torch.Tensor) -> torch.Tensor:
        return sum((stage - clean).abs().mean() for stage in stages)

    ticket = prune(Stages(), batches, density=0.5, rounds=Rounds(1, 2, 2), loss=loss)
    assert ticket.network.name == "first"
    assert ticket.mask.density == pytest.approx(0.5, abs=1e-3)


def test_data_that_end_and_gradients_that_are_not_finite_are_refused(batches):
    with pytest.raises(UserError, match="started again"):
        prune(built(Denoiser), iter(batches), density=0.5, rounds=Rounds(1, 8, 8))
    broken = [(noisy * float("nan"), clean) for noisy, clean in batches]
    with pytest.raises(UserError, match="not finite in step 1"):
        prune(built(Denoiser), broken, density=0.5, rounds=Rounds(1, 1, 1))
    with pytest.raises(UserError, match="no convolution and no linear layer"):
        prune(nn.ReLU(), batches)
    normed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1)))
    with pytest.raises(UserError, match="0: its weight is computed from others"):
        prune(normed, batches)
    with pytest.raises(UserError, match="expected a tuple of patterns"):
        prune(built(Denoiser), batches, exempt="layers.*")
