"""A sparsified network follows what its owner changes afterwards, or has the dense result."""

import copy

import pytest
import torch
from sparsifying import Block, implementations, pruned, rand, same, sparsify
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mirl_sparse import UserError
from mirl_sparse.runtime.snapshot import Snapshot

X = rand(1, 8, 12, 14)


def cnn() -> nn.Sequential:
    layers = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.GELU(), nn.Conv2d(8, 8, 3)
    return pruned(nn.Sequential(*layers), 0.2)


def changed_alike(dense: nn.Module, change) -> None:
    """Sparsify, call, change both networks, and compare."""
    sparsified = sparsify(dense, X)
    assert set(implementations(sparsified).values()) != {"dense"}
    same(sparsified, dense, X)
    with torch.no_grad():
        for network in (dense, sparsified):
            torch.manual_seed(0)
            change(network)
    same(sparsified, dense, X)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_weights_that_a_fused_optimizer_writes_are_followed(optimizer):
    def train(network: nn.Module) -> None:
        network.train().requires_grad_()
        steps = optimizer(network.parameters(), 0.1, fused=True)
        with torch.enable_grad():
            network(X).square().mean().backward()
        steps.step()
        network.eval().requires_grad_(False)

    changed_alike(cnn(), train)
    changed_alike(pruned(nn.Sequential(Block()), 0.5), train)


def through_numpy(network: nn.Module) -> None:
    weight = network[0].weight.detach().numpy()
    weight *= 2


def inference_tensors(network: nn.Module) -> None:
    with torch.inference_mode():
        for m in network.modules():
            if isinstance(m, nn.Conv2d):
                m.weight = nn.Parameter(m.weight * 2, False)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: [p.data.mul_(1.5) for p in network.parameters()],
        lambda network: [p.data.add_(0.1) for p in network.parameters()],
        through_numpy,
        inference_tensors,
        lambda network: setattr(network[0], "padding_mode", "circular"),
        lambda network: (setattr(network[0], "stride", (2, 2)), setattr(network[4], "dilation", (2, 2))),
        lambda network: setattr(network[0], "_conv_forward", lambda x, weight, bias: 2 * x),
        lambda network: setattr(network[0], "__class__", type("Twice", (nn.Conv2d,), {"forward": twice})),
        lambda network: setattr(network[0], "weight", nn.Parameter(torch.randn(8, 8, 1, 1), False)),
        lambda network: setattr(network[1], "forward", lambda x: -x),
        lambda network: setattr(network[1], "__class__", nn.Tanh),
        lambda network: setattr(network[3], "approximate", "tanh"),
    ],
)
def test_a_layer_that_is_changed_gives_what_it_gives_now(change):
    changed_alike(cnn(), change)


def twice(self, x: Tensor) -> Tensor:
    return 2 * nn.Conv2d.forward(self, x)


def replaced_and_hooked(block: Block) -> None:
    block.attn = copy.deepcopy(block.attn)
    block.attn.register_forward_hook(lambda m, args, result: 2 * result)


@pytest.mark.parametrize(
    "change",
    [
        lambda block: setattr(block, "norm1", pruned(nn.BatchNorm2d(8))),
        lambda block: setattr(block, "norm1", pruned(nn.GroupNorm(1, 8))),
        lambda block: setattr(block.attn, "forward", lambda x: 3 * x),
        lambda block: setattr(block.attn.qkv, "forward", lambda x: x.repeat(1, 3, 1, 1)),
        lambda block: setattr(block.attn.qkv_dwconv, "padding_mode", "circular"),
        lambda block: setattr(
            block.ffn,
            "__class__",
            type("Twice", (type(block.ffn),), {"forward": lambda m, x: 2 * type(m).__base__.forward(m, x)}),
        ),
        replaced_and_hooked,
    ],
)
def test_a_block_that_is_changed_inside_gives_what_it_gives_now(change):
    changed_alike(pruned(nn.Sequential(Block()), 0.5), lambda network: change(network[0]))


def test_dropout_that_is_switched_on_inside_a_block_draws():
    block = Block()

    class Drops(type(block.ffn)):
        def forward(self, x: Tensor) -> Tensor:
            return self.drop(super().forward(x))

    block.ffn.drop, block.ffn.__class__ = nn.Dropout(0.5), Drops
    dense = pruned(nn.Sequential(block), 0.5)
    sparsified = sparsify(dense, X)
    assert "fused GDFN" in implementations(sparsified).values()
    results = []
    for network in (dense, sparsified):
        network[0].ffn.drop.train()
        torch.manual_seed(0)
        with torch.no_grad():
            results.append(network(X))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
    assert not torch.equal(sparsified(X), sparsified(X))


def test_hooks_of_all_modules_see_every_call():
    for dense in (cnn(), pruned(nn.Sequential(Block()), 0.5)):
        sparsified = sparsify(dense, X)
        for register in (
            nn.modules.module.register_module_forward_hook,
            nn.modules.module.register_module_forward_pre_hook,
        ):
            seen: list[str] = []
            hook = register(lambda m, *rest, seen=seen: seen.append(type(m).__name__))
            try:
                dense(X)
                expected, seen[:] = list(seen), []
                sparsified(X)
            finally:
                hook.remove()
            assert seen == expected


def test_gradients_of_given_weights_leave_the_packed_ones():
    """torch.func gives the network other weights for a call, whose values cannot be read."""
    for dense in (cnn(), pruned(nn.Sequential(Block()), 0.5)):
        sparsified = sparsify(dense, X)
        weights = {name: 2 * value for name, value in dense.state_dict().items()}
        gradients = [
            grad(lambda w, m=m: functional_call(m, w, (X,)).square().sum())(weights)
            for m in (dense, sparsified)
        ]
        for name in weights:
            torch.testing.assert_close(gradients[1][name], gradients[0][name])
        same(sparsified, dense, X)
        stack = rand(3, 1, 8, 12, 14)
        torch.testing.assert_close(vmap(sparsified)(stack), vmap(dense)(stack), atol=1e-4, rtol=1e-4)
        same(copy.deepcopy(sparsified), dense, X)


@pytest.mark.filterwarnings("ignore")
def test_a_traced_network_takes_images_of_other_sizes():
    dense = cnn()
    traced = torch.jit.trace(sparsify(dense, X), X)
    same(traced, dense, rand(2, 8, 20, 9))


def test_a_network_that_is_changed_before_it_is_compiled_is_packed_anew():
    dense = cnn()
    sparsified = sparsify(dense, X)
    with torch.no_grad():
        for network in (dense, sparsified):
            network[0].weight.mul_(2)
        same(torch.compile(sparsified, backend="eager", fullgraph=True), dense, X)


def test_a_network_that_is_trained_through_its_compiled_form_has_its_new_weights():
    results = []
    for network in (cnn(), sparsify(cnn(), X)):
        compiled = torch.compile(network.train().requires_grad_(), backend="eager", fullgraph=True)
        steps = torch.optim.SGD(network.parameters(), 0.1)
        for _ in range(2):
            compiled.train()(X).square().mean().backward()
            steps.step()
            with torch.no_grad():
                results.append(compiled.eval()(X))
    for expected, result in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


class Recurrent(nn.Module):
    """Adds its last result to its input."""

    def __init__(self, h: Tensor | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.h, self.queue = h, []

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.conv(x if self.h is None else x + self.h)
        self.queue.append(self.h)
        return sum(self.queue)


def test_a_network_with_a_memory_begins_as_it_was():
    dense = pruned(Recurrent())
    sparsified = sparsify(dense, X)
    assert sparsified.h is None
    assert sparsified.queue == []
    assert sparsified.report.comparison.startswith("with the dense network")
    for _ in range(3):
        same(sparsified, dense, X)


def test_a_network_that_reads_what_a_block_keeps_is_refused_in_one_line():
    class Keeps(Block):
        def forward(self, x: Tensor) -> Tensor:
            self.last = x + self.attn(self.norm1(x))
            return self.last + self.ffn(self.norm2(self.last))

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Keeps()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x) + self.block.last

    dense = pruned(Reads(), 0.5)
    with pytest.raises(UserError, match=r"no attribute 'last'.*keep_dense") as caught:
        sparsify(dense, X)
    assert "\n" not in str(caught.value)
    assert not hasattr(sparsify(dense), "last")


def test_a_report_of_the_networks_own_and_what_cannot_be_copied_are_one_line():
    network = cnn()
    network.report = lambda: "mine"
    with pytest.raises(UserError, match="has a report of its own"):
        sparsify(network, X)
    network = cnn()
    network.numbers = (i for i in range(3))
    with pytest.raises(UserError, match=r"the network cannot be copied \(TypeError"):
        sparsify(network, X)


def test_a_snapshot_of_nothing_and_a_copied_one_are_never_current():
    snapshot = Snapshot(cnn())
    assert snapshot.is_current()
    assert not copy.deepcopy(snapshot).is_current()
    assert not Snapshot().is_current()
