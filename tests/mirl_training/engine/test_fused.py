"""Test training on the fused kernels against the plain network."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from mirl_kernels.core import cpu
from mirl_kernels.errors import BackendError
from mirl_kernels.ops.gdfn.backward import TrainableGDFN
from mirl_kernels.ops.mdta.backward import TrainableMDTA
from mirl_sparse.architectures.promptir import PromptIR, PromptIRConfig
from mirl_sparse.errors import UserError
from mirl_training.engine import choose_engine, fuse, unfuse
from mirl_training.pruning import Mask, prune_to_density

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C++ kernels were not built")


def tiny(unshuffle: int = 1) -> PromptIR:
    torch.manual_seed(0)
    return PromptIR(
        PromptIRConfig(
            dim=8,
            num_blocks=(1, 1, 1, 1),
            num_refinement_blocks=1,
            heads=(1, 2, 4, 8),
            prompt_dims=(8, 12, 16),
            prompt_sizes=(8, 4, 2),
            unused_layers=False,
            unshuffle=unshuffle,
        )
    )


@pytest.fixture(scope="module")
def network() -> PromptIR:
    return tiny()


def pruned(network: PromptIR, density: float) -> tuple[PromptIR, Mask]:
    network = copy.deepcopy(network)
    mask = Mask.full(network)
    if density < 1:
        mask = prune_to_density(network, mask, density, "layerwise")
    mask.apply(network)
    return network, mask


def gradients(network: PromptIR, degraded: torch.Tensor, clean: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad(set_to_none=True)
    F.mse_loss(network(degraded), clean).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize(("density", "unshuffle"), [(0.05, 1), (0.3, 1), (1.0, 1), (0.3, 2)])
def test_the_whole_networks_gradients_are_those_of_float64(density, unshuffle):
    plain, mask = pruned(tiny(unshuffle), density)
    fused = copy.deepcopy(plain)
    fuse(fused, mask)
    degraded, clean = torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48)
    wanted = gradients(plain.double(), degraded.double(), clean.double())
    for name, got in gradients(fused, degraded, clean).items():
        want = wanted[name]
        if name in mask.alive:
            assert not got[~mask.alive[name]].any(), name
            want = want * mask.alive[name]
        scale = max(1e-9, want.abs().max().item())
        torch.testing.assert_close(
            got.double(), want, atol=1e-4 * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_copy_answers_the_same_and_fusing_can_be_undone(network):
    plain, mask = pruned(network, 0.2)
    image, keys = torch.rand(1, 3, 16, 24), list(plain.state_dict())
    before = gradients(plain, image, image)
    fuse(plain, mask)
    assert list(plain.state_dict()) == keys
    copied = copy.deepcopy(plain)
    torch.testing.assert_close(copied(image), plain(image), atol=0, rtol=0)
    unfuse(plain)
    for name, gradient in gradients(plain, image, image).items():
        assert torch.equal(gradient, before[name]), name


# Rows of images apart, or as one; matrices by their entries, or whole.
@pytest.mark.parametrize(("batch", "density"), [(2, 0.3), (8, 0.3), (2, 1.0), (8, 1.0)])
def test_any_number_of_threads_gives_the_same_bits(network, batch, density):
    plain, mask = pruned(network, density)
    fuse(plain, mask)
    threads, image = torch.get_num_threads(), torch.rand(batch, 3, 32, 32)
    try:
        by_threads = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            by_threads.append(gradients(plain, image, 1 - image))
    finally:
        torch.set_num_threads(threads)
    for name, gradient in by_threads[0].items():
        # PyTorch's own sums, whose order may change.
        if name.endswith("prompt_param") or "linear_layer" in name:
            continue
        assert all(torch.equal(gradient, other[name]) for other in by_threads[1:]), name


def close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    for name, w in want.items():
        scale = max(1e-9, w.abs().max().item())
        torch.testing.assert_close(got[name], w, atol=1e-5 * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_gradients_accumulate(network):
    fused, mask = pruned(network, 0.3)
    fuse(fused, mask)
    a, b, clean = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    parts = [gradients(fused, image, clean) for image in (a, b)]
    fused.zero_grad(set_to_none=True)
    for image in (a, b):
        F.mse_loss(fused(image), clean).backward()
    close({n: p.grad for n, p in fused.named_parameters()}, {n: parts[0][n] + parts[1][n] for n in parts[0]})


def test_calls_with_other_weights_may_lie_between_forward_and_backward(network):
    fused, mask = pruned(network, 0.3)
    fuse(fused, mask)
    image, clean = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)
    alone = gradients(fused, image, clean)
    fused.zero_grad(set_to_none=True)
    loss = F.mse_loss(fused(image), clean)
    doubled = {name: 2 * p.detach() for name, p in fused.named_parameters()}
    torch.func.functional_call(fused, doubled, image)
    loss.backward()
    for name, p in fused.named_parameters():
        assert torch.equal(p.grad, alone[name]), name


def test_an_average_of_weights_runs_on_the_kernels_too(network):
    fused, mask = pruned(network, 0.3)
    fuse(fused, mask)
    average = AveragedModel(fused)
    average.update_parameters(fused)
    with torch.no_grad():
        for name, p in fused.named_parameters():
            p.add_(0.01 * torch.randn_like(p) * mask.alive.get(name, torch.ones(())))
    average.update_parameters(fused)
    expected = copy.deepcopy(average.module)
    unfuse(expected)
    image = torch.rand(1, 3, 16, 24)
    torch.testing.assert_close(average(image), expected(image), atol=1e-5, rtol=0)


def _worker(rank: int, store: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    fused, mask = pruned(tiny(), 0.3)
    fuse(fused, mask)
    images = torch.load(Path(folder, "images.pt"))
    model = DistributedDataParallel(fused)
    F.mse_loss(model(images[rank : rank + 1]), 1 - images[rank : rank + 1]).backward()
    torch.save({n: p.grad for n, p in fused.named_parameters()}, Path(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_data_parallel_gradients_are_those_of_the_whole_batch(network, tmp_path):
    images = torch.rand(2, 3, 16, 16)
    torch.save(images, tmp_path / "images.pt")
    torch.multiprocessing.spawn(_worker, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    fused, mask = pruned(network, 0.3)
    fuse(fused, mask)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    close(ranks[0], gradients(fused, images, 1 - images))
    assert all(torch.equal(ranks[0][n], ranks[1][n]) for n in ranks[0])


@pytest.mark.parametrize("op", ["gdfn", "mdta"])
def test_finite_differences_agree(op):
    torch.manual_seed(0)
    c, h = 4, 10
    rows, hidden = (2 * h, h) if op == "gdfn" else (3 * c, c)
    masks = [torch.rand(s) < 0.6 for s in ((rows, c, 1, 1), (rows, 1, 3, 3), (c, hidden, 1, 1))]
    weights = [0.3 * torch.randn(m.shape).double() * m for m in masks]
    first = [
        torch.randn(1, c, 5, 6).double(),
        1 + 0.1 * torch.randn(c).double(),
        0.1 * torch.randn(c).double(),
    ]
    if op == "gdfn":
        trainable, arguments = TrainableGDFN(*masks), [*first, *weights]
    else:
        trainable = TrainableMDTA(*masks, 2)
        arguments = [*first, *weights[:2], torch.ones(2, 1, 1).double(), weights[2]]
    alive = {tuple(w.shape): m for w, m in zip(weights, masks, strict=True)}

    def call(*values: torch.Tensor) -> torch.Tensor:
        masked = [v * alive[tuple(v.shape)] if tuple(v.shape) in alive else v for v in values]
        return trainable(*(v.float() for v in masked)).double()

    inputs = [v.requires_grad_() for v in arguments]
    # Gradients are at most 1.1. Results have a rounding of 1e-7, which a step of 3e-3 magnifies to 4e-5; with
    # larger steps the curvature of MDTA counts, with smaller ones the rounding.
    assert torch.autograd.gradcheck(call, inputs, eps=3e-3, atol=1e-4, rtol=0, nondet_tol=1e-5)


def test_engines_are_chosen_by_name():
    assert choose_engine("auto")[0] == choose_engine("fused")[0] == "fused"
    assert choose_engine("reference")[0] == "reference"
    assert "--engine reference" in choose_engine("auto")[1]
    with pytest.raises(UserError, match="engine is 'fast'; expected one of auto, fused, reference"):
        choose_engine("fast")


def test_without_the_kernels_training_says_why_it_is_slow(monkeypatch):
    def missing() -> None:
        raise BackendError("the C++ kernels were not built")

    monkeypatch.setattr(cpu, "load_library", missing)
    assert choose_engine("auto") == (
        "reference",
        "engine: reference (PyTorch's autograd), since the C++ kernels were not built",
    )
    with pytest.raises(UserError, match="engine 'fused' cannot run here: the C"):
        choose_engine("fused")
