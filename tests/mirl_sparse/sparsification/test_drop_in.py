"""A sparsified network is used like the dense one: everything that can be asked of its modules stays."""

import copy
from functools import partial

import pytest
import torch
from sparsifying import Block, SparseIsFree, Zoo, implementations, pruned, rand, same, sparsify
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations

import mirl_sparse
from mirl_sparse import SparseRestorer, UserError
from mirl_sparse.performance.prices import PriceStore
from mirl_sparse.sparsification import CpuTarget, sparsify_for
from mirl_sparse.sparsification.forward import SparseForward

X = rand(1, 8, 12, 14)


def cnn(density: float = 0.2, seed: int = 0) -> nn.Sequential:
    layers = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.GELU(), nn.Conv2d(8, 8, 3)
    return pruned(nn.Sequential(*layers), density, seed)


@pytest.fixture
def counted(monkeypatch):
    """Count how often a packed op runs instead of a dense forward."""
    calls = []
    op_for = SparseForward.op_for

    def counting(self, *args, **named):
        op = op_for(self, *args, **named)
        calls.append(op is not None)
        return op

    monkeypatch.setattr(SparseForward, "op_for", counting)
    return calls


@pytest.mark.parametrize(
    "asks",
    [
        lambda layer: isinstance(layer, nn.Conv2d),
        lambda layer: type(layer) is nn.Conv2d,
        lambda layer: layer.__class__.__name__ == "Conv2d",
        lambda layer: getattr(layer, "weight", None) is not None,
        lambda layer: len(list(layer.parameters())) == 2,
    ],
)
@pytest.mark.parametrize("example", [None, X])
def test_a_forward_may_ask_what_its_layers_are(asks, example):
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x) if asks(layer) else layer(x)
            return x

    dense = pruned(Residual())
    sparsified = sparsify(dense, example)
    assert implementations(sparsified) == {"layers.0": "sparse 1x1", "layers.2": "sparse 1x1"}
    same(sparsified, dense, X)


def test_every_part_of_a_network_gives_its_own_result():
    def note(seen, name, module, args, result) -> None:
        seen.setdefault(name, []).append(copy.deepcopy(result))

    for dense in (cnn(), pruned(nn.Sequential(Block()), 0.5), pruned(nn.Sequential(Zoo()))):
        x = X if not isinstance(dense[0], Zoo) else rand(1, 3, 12, 14)
        sparsified = sparsify(dense, x)
        results = []
        for network in (dense, sparsified):
            seen: dict[str, list] = {}
            hooks = [
                m.register_forward_hook(partial(note, seen, name)) for name, m in network.named_modules()
            ]
            with torch.no_grad():
                network(x)
            for hook in hooks:
                hook.remove()
            results.append(seen)
        assert any(results[0].values())
        for name, expected in results[0].items():
            torch.testing.assert_close(results[1][name], expected, atol=1e-4, rtol=1e-4, msg=name)
        same(sparsified, dense, x)


def test_a_branch_that_the_example_does_not_take_gives_the_same():
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.block = cnn(), Block()

        def forward(self, x: Tensor, features: bool = False) -> Tensor:
            return self.body[0](x) + self.block.attn(x) if features else self.body(self.block(x))

    dense = pruned(Features(), 0.5)
    sparsified = sparsify(dense, X)
    assert "fused MDTA" in implementations(sparsified).values()
    same(sparsified, dense, X)
    same(sparsified, dense, X, True)


def test_a_child_that_is_replaced_takes_part():
    dense = cnn()
    sparsified = sparsify(dense, X)
    for network in (dense, sparsified):
        network[1] = nn.Tanh()
        network.append(nn.Sigmoid())
    same(sparsified, dense, X)
    block = pruned(Block(), 0.5)
    sparsified = sparsify(block, X)
    for network in (block, sparsified):
        network.attn.project_out = nn.Identity()
    same(sparsified, block, X)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.load_state_dict(cnn(0.4, 3).state_dict()),
        lambda network: network.load_state_dict(cnn(0.4, 3).state_dict(), assign=True),
        lambda network: network[0].weight.mul_(2),
        lambda network: network[2].bias.zero_(),
        lambda network: setattr(network[0], "weight", nn.Parameter(cnn(0.4, 3)[0].weight.clone(), False)),
        lambda network: setattr(network[0].weight, "data", network[0].weight.data * 2),
        lambda network: network.double().float(),
    ],
)
def test_weights_that_change_are_packed_anew(change, counted):
    dense = cnn()
    sparsified = sparsify(dense, X)
    with torch.no_grad():
        change(dense)
        change(sparsified)
        counted.clear()
        same(sparsified, dense, X)
    assert counted == [True] * 3


def test_compiled_networks_follow_weights_that_are_loaded():
    torch._dynamo.reset()
    dense = cnn(0.4, 3)
    sparsified = sparsify(cnn(), X)
    compiled = torch.compile(copy.deepcopy(sparsified), fullgraph=True, backend="aot_eager")
    same(compiled, cnn(), X)
    compiled.load_state_dict({f"_orig_mod.{k}": v for k, v in dense.state_dict().items()})
    same(compiled, dense, X)


def test_networks_under_other_tools_give_the_same():
    dense = cnn()
    sparsified = sparsify(dense, X)
    for made in (
        sparsify(torch.compile(dense), X),
        sparsify(torch.fx.symbolic_trace(dense), X),
        sparsify(sparsified, X),
        torch.fx.symbolic_trace(sparsified),
        torch.jit.trace(sparsified, X),
        sparsify(nn.DataParallel(dense), X),
    ):
        same(made, dense, X)
    with pytest.raises(AttributeError, match="cannot be scripted; script the dense network"):
        torch.jit.script(sparsified)
    doubled = {name: 2 * value for name, value in dense.state_dict().items()}
    with torch.no_grad():
        expected = torch.func.functional_call(dense, doubled, X)
        torch.testing.assert_close(
            torch.func.functional_call(sparsified, doubled, X), expected, atol=1e-4, rtol=1e-4
        )
        images = rand(3, 8, 9, 9)
        torch.testing.assert_close(
            torch.vmap(sparsified)(images), torch.vmap(dense)(images), atol=1e-4, rtol=1e-4
        )
    same(sparsified, dense, X)


def test_gradients_are_those_of_the_dense_network():
    def squared(network: nn.Module, x: Tensor) -> Tensor:
        return (network(x) ** 2).sum()

    def backward(network: nn.Module) -> list[Tensor]:
        x = X.clone().requires_grad_()
        network.requires_grad_()
        squared(network, x).backward()
        return [x.grad, network[0].weight.grad]

    def functional(network: nn.Module) -> list[Tensor]:
        function = partial(squared, network)
        return [torch.func.grad(function)(X), torch.func.jvp(network, (X,), (torch.ones_like(X),))[1]]

    def dual(network: nn.Module) -> list[Tensor]:
        with forward_ad.dual_level():
            return [forward_ad.unpack_dual(network(forward_ad.make_dual(X, torch.ones_like(X)))).tangent]

    for dense in (cnn(), pruned(nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 1)), Block()), 0.5)):
        for gradients in (functional, dual):
            for got, expected in zip(gradients(sparsify(dense, X)), gradients(dense), strict=True):
                torch.testing.assert_close(got, expected)
    for got, expected in zip(backward(sparsify(cnn(), X)), backward(cnn()), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_restorer_refuses_a_gradient_of_either_mode(network):
    restorer = SparseRestorer(network)
    image = torch.rand(1, 3, 16, 16)
    with pytest.raises(UserError, match="requires a gradient"):
        restorer(image.clone().requires_grad_())
    with pytest.raises(UserError, match="requires a gradient"):
        torch.func.jvp(restorer, (image,), (image,))
    assert restorer(image[:0]).shape == (0, 3, 16, 16)
    with pytest.raises(TypeError, match=r"image is ndarray; expected a tensor \(B, 3, H, W\), or a photo"):
        restorer(image.numpy())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_that_is_cast_runs_as_the_dense_one(dtype, network):
    for dense, x in (
        (cnn(), X),
        (pruned(Block(), 0.5), X),
        (copy.deepcopy(network.prompt1), rand(1, 16, 9, 9)),
    ):
        sparsified = sparsify(nn.Sequential(dense), x).to(dtype)
        with torch.no_grad():
            assert torch.equal(sparsified(x.to(dtype)), copy.deepcopy(dense).to(dtype)(x.to(dtype)))


def test_autocast_batches_of_0_and_other_ranks_give_what_the_dense_network_gives():
    dense = cnn()
    sparsified = sparsify(dense, X)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sparsified(X), dense(X))
    with torch.inference_mode():
        torch.testing.assert_close(sparsified(X), dense(X), atol=1e-4, rtol=1e-4)
    assert sparsified(X[:0]).shape == (0, 8, 10, 12)
    same(sparsified, dense, X[0])
    for x in (X[0, 0], X[None], X[:, :7]):
        with pytest.raises(RuntimeError, match="input"):  # of PyTorch, as of the dense network
            sparsified(x)


def test_a_trained_copy_is_packed_with_its_new_weights(counted):
    sparsified = sparsify(cnn(), X).train().requires_grad_()
    counted.clear()
    optimizer = torch.optim.SGD(sparsified.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        sparsified(X).square().mean().backward()
        optimizer.step()
    dense = cnn()
    dense.load_state_dict(sparsified.state_dict())
    assert not any(counted)
    same(sparsified.eval(), dense, X)
    assert any(counted)


class Draws(nn.Module):
    """A network with noise of its own, from the generator of the process or its own."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.conv, self.generator = nn.Conv2d(8, 8, 1), torch.Generator().manual_seed(0) if own else None

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.rand(x.shape, generator=self.generator)


def test_networks_that_draw_random_numbers_are_compared():
    dense = pruned(Draws(own=False))
    state = torch.get_rng_state()
    sparsified = sparsify(dense, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert sparsified.report.comparison.startswith("with the dense network on the example input")
    sparsified = sparsify(pruned(Draws(own=True)), X)
    assert implementations(sparsified) == {"conv": "sparse 1x1"}
    assert "the network gives another result at each call" in sparsified.report.comparison


def test_a_layer_that_differs_on_what_it_gets_becomes_dense(monkeypatch):
    class Counts(nn.Module):
        """A network that gives something else at each call, in which one layer gets far larger numbers."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.calls = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.first(x) + self.second(x + 100) + self.calls

    call = SparseForward.__call__

    def wrong_on_large(self, x):
        return call(self, x) + (x.mean() > 50)

    monkeypatch.setattr(SparseForward, "__call__", wrong_on_large)
    sparsified = sparsify(pruned(Counts()), X)
    rows = {row.name: row for row in sparsified.report.layers}
    assert rows["first"].implementation == "sparse 1x1"
    assert rows["second"].implementation == "dense"
    assert rows["second"].reason.startswith("its sparse form differs by")


def test_buffers_that_a_call_writes_to_are_left_as_they_were():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.conv(x) * self.calls

    dense = pruned(Counts())
    sparsified = sparsify(dense, X)
    assert sparsified.calls == 0
    same(sparsified, dense, X)


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, *, image: Tensor) -> Tensor:
        return self.conv(image)


class OfADict(ByName):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.conv(batch["image"])


@pytest.mark.parametrize("kind", [ByName, OfADict])
def test_an_example_may_be_a_dict(kind):
    sparsified = sparsify(pruned(kind()), {"image": X})
    assert implementations(sparsified) == {"conv": "sparse 1x1"}


def test_odd_weights_keep_a_layer_dense():
    dense = cnn()
    dense[0].weight.data[0, 0, 0, 0] = float("nan")
    sparsified = sparsify(dense, X)
    assert sparsified.report.layers[0].reason == "its weight has values that are NaN or infinite"
    assert torch.equal(sparsified(X).isnan(), dense(X).isnan())
    linear = pruned(nn.Sequential(nn.Linear(8, 8)))
    linear[0].weight = nn.Parameter(linear[0].weight.detach().to_sparse_csr(), False)
    sparsified = sparsify(linear, rand(3, 8))
    assert sparsified.report.layers[0].reason.startswith("its weight is stored as torch.sparse_csr")
    same(sparsified, linear, rand(3, 8))


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nn.utils.weight_norm, "its weight is computed at each call"),
        (nn.utils.spectral_norm, "its weight is computed at each call"),
        (parametrizations.spectral_norm, "its weight is computed (torch.nn.utils.parametrize)"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_are_computed_keep_a_layer_dense(norm, reason):
    dense = nn.Sequential(norm(nn.Conv2d(8, 8, 3))).eval()
    sparsified = sparsify(dense, X)
    assert [row.reason for row in sparsified.report.layers] == [reason]
    same(sparsified, dense, X)


def test_a_forward_that_somebody_set_is_called():
    dense, block = cnn(), pruned(Block(), 0.5)
    dense[0].forward = partial(lambda m, x: 3 * nn.Conv2d.forward(m, x), dense[0])
    block.attn.forward = partial(lambda m, x: 3 * type(m).forward(m, x), block.attn)
    sparsified = sparsify(dense, X)
    assert sparsified.report.layers[0].reason == "it has its own forward()"
    same(sparsified, dense, X)
    sparsified = sparsify(block, X)
    assert sparsified.report.layers[0].reason.endswith("its attn has its own forward()")
    same(sparsified, block, X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_parts_stay_dense():
    dense = nn.Sequential(torch.jit.script(cnn()), pruned(nn.Conv2d(8, 8, 1)))
    sparsified = sparsify(dense, X)
    assert implementations(sparsified) == {"0": "dense", "1": "sparse 1x1"}
    assert sparsified.report.layers[0].reason == "it is TorchScript, whose layers cannot be swapped"
    same(sparsified, dense, X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.script(cnn()), "module is TorchScript.*; give the network that it was made from"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3)), r"0\.weight has no shape yet; run the network once"),
        (lambda: cnn().to("meta"), r"0\.weight is on the meta device, without values; load the weights"),
    ],
)
def test_networks_without_weights_or_layers_are_refused(make, message):
    for example in (None, X):
        with pytest.raises(UserError, match=message):
            sparsify(make().eval(), example)


@pytest.mark.parametrize("example", ["photo.png", X.numpy(), [X], rand(1, 7, 9, 9), (X, X)])
def test_an_example_that_the_network_does_not_take_is_refused(example):
    with pytest.raises(UserError, match=r"the network fails on the example input .*; give one that it takes"):
        sparsify(cnn(), example)


def test_modules_can_be_kept_dense():
    target = CpuTarget(SparseIsFree())
    dense = nn.Sequential(cnn(), pruned(Block(), 0.5))
    sparsified = sparsify_for(target, dense, X, keep_dense=["0.2", "1"])
    runs_as = implementations(sparsified)
    assert runs_as["0.0"] == "sparse convolution + ReLU"
    assert runs_as["0.2"] == runs_as["1.attn.qkv"] == "dense"
    assert {row.reason for row in sparsified.report.layers if row.name == "0.2"} == {"keep_dense names it"}
    same(sparsified, dense, X)
    for names, message in (
        (["0.22"], 'keep_dense names "0.22".*did you mean "0.2"'),
        (["body"], 'keep_dense names "body".*expected a name of named_modules'),
        ("0.2", 'keep_dense is "0.2"; expected a list'),
    ):
        with pytest.raises(UserError, match=message):
            mirl_sparse.sparsify(dense, X, keep_dense=names)


def test_a_whole_promptir_with_modules_kept_dense_is_sparsified_as_any_network(network):
    image = torch.rand(1, 3, 24, 32)
    sparsified = mirl_sparse.sparsify(network, image, keep_dense=["output"])
    assert type(sparsified) is type(network)
    assert implementations(sparsified)["output"] == "dense"
    same(sparsified, network, image)


def test_the_tolerance_can_be_set():
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(1e4 * self.conv(x))

    dense = pruned(Steep())
    with pytest.raises(UserError, match="give a tolerance of"):
        sparsify(dense, X)
    assert sparsify_for(CpuTarget(SparseIsFree()), dense, X, tolerance=0.5).report.layers[0].swapped


def test_a_user_without_a_home_folder_can_sparsify(monkeypatch):
    def fail(name):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("mirl_sparse.performance.prices.user_cache_path", fail)
    monkeypatch.setattr(
        "mirl_sparse.performance.prices.PriceStore.model", lambda self, machine: SparseIsFree()
    )
    dense = cnn()
    same(mirl_sparse.sparsify(dense, X), dense, X)
    monkeypatch.undo()
    assert PriceStore(None, SparseIsFree).model("this machine").prices == {}
