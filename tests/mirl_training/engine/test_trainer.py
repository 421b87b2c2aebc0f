"""Test a step of training: parts of a batch, averages, a teacher, precisions."""

import copy
import math

import pytest
import torch
from tiny import settings
from torch.nn import functional as F

from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.runtime import SparseRestorer
from mirl_training.engine import (
    Computation,
    Diverged,
    Trainer,
    TrainingEngine,
    choose_engine,
    harm,
    psnr_loss,
)
from mirl_training.pruning import Mask, prune_to_density

RATE = 1e-3


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 3, 16, 16, generator=generator), torch.rand(3, 3, 16, 16, generator=generator)


def trainer(network, **changes):
    engine = TrainingEngine(changes.pop("engine", "fused"))
    mask = changes.pop("mask", Mask.full(network))
    teacher = changes.pop("teacher_network", None)
    training = settings(training={"batch_size": 3} | changes).training
    return Trainer(network, mask, training, Computation(engine, teacher and SparseRestorer(teacher)))


def gradients(network):
    return {n: p.grad.clone() for n, p in network.named_parameters()}


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_importance_is_the_squared_change_of_the_loss(network, batch, engine):
    mask = prune_to_density(network, Mask.full(network), 0.5, "global")
    mask.apply(network)
    t = trainer(network, mask=mask, engine=engine)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    importance = t.importance([batch])
    exact = PromptIR(network.config).double()
    degraded, clean = (images.double() for images in batch)

    def loss(name: str, place: int, scale: float) -> float:
        exact.load_state_dict(start)
        with torch.no_grad():
            exact.get_parameter(name).view(-1)[place] *= scale
            return float((exact(degraded) - clean).abs().mean())

    for name, values in list(importance.items())[::5]:
        assert torch.equal(network.get_parameter(name), start[name])
        place = int(values.argmax())
        slope = (loss(name, place, 1 + 1e-4) - loss(name, place, 1 - 1e-4)) / 2e-4
        assert float(values.flatten()[place]) == pytest.approx(slope**2, rel=0.05), name
    for name, keep in mask.alive.items():
        assert not importance[name][~keep].any()


def test_importance_is_a_mean_over_batches(network, batch):
    t, other = trainer(network), tuple(images.flip(-1) for images in batch)
    first, second, both = (t.importance(batches) for batches in ([batch], [other], [batch, other]))
    for name, values in both.items():
        torch.testing.assert_close(values, (first[name] + second[name]) / 2, rtol=1e-4, atol=0)


@pytest.mark.parametrize("parts", [2, 3])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(network, batch, parts):
    start = {k: v.clone() for k, v in network.state_dict().items()}
    loss = trainer(network).step(*batch, 0.0)
    whole = gradients(network)
    network.load_state_dict(start)
    assert trainer(network, accumulate=parts).step(*batch, 0.0) == pytest.approx(loss, rel=1e-5)
    for name, grad in gradients(network).items():
        torch.testing.assert_close(
            grad, whole[name], rtol=1e-3, atol=1e-3 * float(whole[name].abs().max()), msg=name
        )


def test_the_average_forgets_the_start_and_follows_its_decay(network, batch):
    t = trainer(network, ema=0.75)
    expected = [p.detach().clone().double() for p in network.parameters()]
    for step in range(1, 40):
        t.step(*batch, RATE)
        decay = min(0.75, step / (step + 9))
        expected = [
            decay * e + (1 - decay) * p.detach() for e, p in zip(expected, network.parameters(), strict=True)
        ]
    for e, (name, _) in zip(expected, network.named_parameters(), strict=True):
        torch.testing.assert_close(t.weights[name].double(), e, rtol=1e-4, atol=1e-6)
        assert not torch.equal(t.weights[name], network.get_parameter(name))


def test_without_an_average_the_weights_are_those_of_the_network(network):
    assert all(torch.equal(w, network.state_dict()[n]) for n, w in trainer(network).weights.items())


def test_a_teacher_takes_its_part_of_the_loss(network, batch):
    teacher = copy.deepcopy(network)
    for p in teacher.parameters():
        p.data *= 0.9
    degraded, clean = batch
    with torch.no_grad():
        restored, taught = network(degraded), teacher(degraded)
    wanted = 0.7 * F.l1_loss(restored, clean) + 0.3 * F.l1_loss(restored, taught)
    loss = trainer(network, teacher="another", teacher_weight=0.3, teacher_network=teacher).step(*batch, 0.0)
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    assert loss != pytest.approx(F.l1_loss(restored, clean).item(), rel=1e-2)


def test_pruned_weights_stay_zero_under_muon(network, batch):
    mask = prune_to_density(network, Mask.full(network), 0.3, "global")
    mask.apply(network)
    t = trainer(network, mask=mask, optimizer="muon", weight_decay=0.1)
    for _ in range(3):
        t.step(*batch, RATE)
    assert len(t.state_dict()["optimizers"]) == 2
    assert all(not network.get_parameter(n)[~keep].any() for n, keep in mask.alive.items())


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_pruned_gains_of_norms_stay_zero(network, batch, engine):
    full = Mask.full(network, gains=True)
    generator = torch.Generator().manual_seed(0)
    mask = Mask({n: torch.rand(keep.shape, generator=generator) < 0.5 for n, keep in full.alive.items()})
    mask.apply(network)
    t = trainer(network, mask=mask, engine=engine)
    for _ in range(3):
        t.step(*batch, RATE)
    assert mask.has_gains
    assert all(not network.get_parameter(n)[~keep].any() for n, keep in mask.alive.items())
    gain = "latent.0.norm1.body.weight"
    assert (network.get_parameter(gain)[mask.alive[gain]] != 1).any()


def test_bfloat16_trains_float32_weights_on_the_reference_engine(network, batch):
    exact = trainer(network, engine="reference").step(*batch, 0.0)
    t = trainer(network, engine="reference", precision="bfloat16")
    loss = t.step(*batch, RATE)
    assert loss == pytest.approx(exact, rel=0.02)
    assert loss != exact
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_bfloat16_is_trained_by_the_reference_engine():
    assert choose_engine("auto", precision="bfloat16")[0] == "reference"
    with pytest.raises(ValueError, match="float32 on a CPU"):
        choose_engine("fused", precision="bfloat16")


def test_a_gradient_that_is_not_finite_is_not_stepped_on(network, batch):
    with pytest.raises(Diverged):
        trainer(network).step(batch[0] * float("nan"), batch[1], RATE)


def test_importance_that_is_not_finite_is_refused(network, batch):
    with pytest.raises(Diverged):
        trainer(network).importance([batch, (batch[0] * float("nan"), batch[1])])


def test_the_psnr_loss_has_a_ceiling(batch):
    clean = batch[1]
    assert psnr_loss(clean, clean).item() == pytest.approx(-50)
    assert psnr_loss(clean, clean, ceiling=45).item() == pytest.approx(-45)


def test_harm_is_the_square_of_the_decibels_that_are_lost(network, batch):
    clean = batch[1]
    off = torch.tensor([0.01, 0.1, 0.3]).view(3, 1, 1, 1)
    levels = 10 * (off.flatten() ** 2 + 1e-5).log10()
    ceiling = 50.0
    assert harm(clean + off, clean + off, clean, ceiling) == 0
    assert harm(clean, clean + off, clean, ceiling) == 0  # better is no harm
    assert harm(clean + off, clean, clean, ceiling).item() == pytest.approx(
        (levels + ceiling).square().mean().item(), rel=1e-4
    )
    assert harm(clean + 1e-4, clean, clean, ceiling).item() < 1e-3
    degraded, clean = batch
    restored = network(degraded)
    expected = psnr_loss(restored, clean) + 0.5 * harm(restored, degraded, clean, ceiling)
    step = trainer(network, loss="psnr", harm_weight=0.5).step(degraded, clean, RATE)
    assert step == pytest.approx(expected.item(), rel=1e-5)


def test_the_psnr_loss_weighs_images_by_their_own_error(network, batch):
    """An image whose error is thirty times as large does not ask for larger steps."""
    clean = batch[1]
    restored = clean.clone().requires_grad_(True)
    off = torch.tensor([0.01, 0.1, 0.3]).view(3, 1, 1, 1)
    loss = psnr_loss(restored + off, clean)
    loss.backward()
    assert loss.item() == pytest.approx(
        float((20 * (off.flatten() ** 2 + 1e-5).sqrt().log10()).mean()), rel=1e-4
    )
    share = (restored.grad * off).sum((1, 2, 3)) * (off.flatten() ** 2 + 1e-5) / off.flatten() ** 2
    torch.testing.assert_close(share, torch.full((3,), 20 / 3 / math.log(10)))
    degraded, clean = batch
    expected = psnr_loss(network(degraded), clean).item()
    assert trainer(network, loss="psnr").step(degraded, clean, RATE) == pytest.approx(expected, rel=1e-5)
