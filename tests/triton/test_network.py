"""Test a whole network on the Triton kernels."""

import warnings
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from mirl_kernels.core.triton import Workspace
from mirl_sparse.architectures.promptir import PromptIR
from mirl_sparse.runtime import triton as triton_engine
from mirl_sparse.runtime import triton_network
from mirl_sparse.runtime.restorer import SparseRestorer
from mirl_sparse.runtime.triton import TritonEngine
from mirl_sparse.runtime.triton_network import PackedNetwork
from mirl_sparse.runtime.tuning import Tuning


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("float16", 2e-2)])
def test_the_restored_image_is_that_of_the_reference(network, precision, tolerance, device):
    x = torch.rand(1, 3, 13, 18)
    want = SparseRestorer(network, "reference")(x)
    restorer = SparseRestorer(
        network.to(device), "triton", precision=precision, tuning=Tuning({}, frozenset())
    )  # no dense steps
    restored = restorer(x.to(device)).cpu()
    assert restored.dtype == torch.float32
    assert float((restored - want).abs().max()) <= tolerance * float((want - x).abs().max())


def test_a_network_of_half_resolution_runs_on_the_kernels(network, device):
    network = PromptIR(replace(network.config, unshuffle=2))
    x = torch.rand(1, 3, 16, 32)
    want = SparseRestorer(network, "reference")(x)
    restorer = SparseRestorer(network.to(device), "triton", precision="float32")
    torch.testing.assert_close(restorer(x.to(device)).cpu(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("share", "dtype", "tolerance"), [(1, torch.float32, 1e-4), (2, torch.float16, 2e-2)]
)
def test_steps_can_run_as_dense_operators(network, share, dtype, tolerance, device):
    x = torch.rand(2, 3, 16, 24)
    want = SparseRestorer(network, "reference")(x)
    tolerance = tolerance if device == "cpu" else 2e-2  # float32 convolutions are in TF32 there
    packed = PackedNetwork(network, dtype)
    packed.to(torch.device(device))
    with torch.no_grad():
        restored = packed(x.to(device), Workspace(), list(packed.dense)[::share]).cpu()
    assert restored.dtype == torch.float32
    assert float((restored - want).abs().max()) <= tolerance * float((want - x).abs().max())


def test_steps_run_dense_where_that_is_faster_and_fits_into_memory(network, device, monkeypatch):
    packed, x = PackedNetwork(network, torch.float32), torch.rand(1, 3, 16, 24, device=device)
    packed.to(torch.device(device))
    fast = {"patch_embed", "encoder_level1.0", "latent.0"}
    taking = {packed.dense[name]: 1 if name in fast else 3 for name in packed.dense}

    def seconds(call):
        call()
        return taking.get(call.func, 2)

    workspace = Workspace()
    with torch.no_grad():
        assert packed.dense_where_faster(x, workspace, seconds) == fast
        # What latent.0 takes: 64 channels, 2x3 pixels.
        monkeypatch.setattr(triton_network, "MAX_HIDDEN_BYTES", 3 * 6 * 64 * 2 * 3 * 4)
        assert packed.dense_where_faster(x, workspace, seconds) == {"patch_embed", "latent.0"}
        made = []
        for name in fast:
            packed.dense[name].register_forward_hook(lambda op, *rest: made.append(op))
        packed(x, workspace, fast)
    assert len(made) == 2  # a block that would take too much memory is sparse whatever was chosen


def test_the_second_image_of_a_size_is_recorded_as_a_graph_and_later_ones_replay_it(
    network, device, monkeypatch
):
    if device == "cuda":
        pytest.skip("graphs are real there")
    engine, recorded = TritonEngine(network, "float32"), []

    class Doubling:
        dense: dict = {}  # noqa: RUF012

        def __call__(self, image, workspace, dense=(), overflowing=None):
            return 2 * image

    class Graph:
        def replay(self):
            (now,) = [seen for seen in engine._sizes.values() if seen.graph is self]
            now.y.copy_(2 * now.x)

    def record(graph):
        recorded.append(graph)
        return nullcontext()

    def no_memory(graph):
        raise RuntimeError("Triton Error [CUDA]: out of memory")

    monkeypatch.setattr(engine, "_program", Doubling())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(triton_engine, "capturing", record)
    monkeypatch.setattr(TritonEngine, "_key", lambda self, image: (tuple(image.shape), 0))
    for times in (0, 1, 1):
        image = torch.rand(1, 3, 16, 24)
        assert torch.equal(engine._restore_on_gpu(image), 2 * image)
        assert len(recorded) == times
    monkeypatch.setattr(triton_engine, "capturing", no_memory)
    for _ in range(3):
        image = torch.rand(1, 3, 8, 8)
        assert torch.equal(engine._restore_on_gpu(image), 2 * image)
    assert engine.cached_bytes == engine.required_bytes(1, 16, 24) + engine.required_bytes(1, 8, 8)
    engine.release()
    assert engine.cached_bytes == 0


def test_an_error_that_is_not_about_memory_is_passed_on(network, monkeypatch):
    engine = TritonEngine(network, tuning=Tuning({}, frozenset()))

    def broken(graph):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(triton_engine, "capturing", broken)
    cache = triton_engine._SizeCache(Workspace())
    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine._record(cache, torch.zeros(1, 3, 8, 8), frozenset())


def test_features_beyond_float16_are_finite_and_reported(network, device):
    with torch.no_grad():
        network.patch_embed.proj.weight *= 1e6
    image = torch.rand(1, 3, 16, 24)
    want = SparseRestorer(network, "reference")(image)
    tuning = Tuning({}, frozenset())
    restorer = SparseRestorer(network.to(device), "triton", tuning=tuning)
    with pytest.warns(UserWarning, match=r"exceed what float16 holds \(65504\) .* first in patch_embed"):
        assert restorer(image.to(device)).isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restorer(image.to(device))  # it is said once
        precise = SparseRestorer(network, "triton", precision="float32", tuning=tuning)
        restored = precise(image.to(device)).cpu()
    assert float((restored - want).abs().max()) <= 1e-4 * float((want - image).abs().max())


def test_dense_operators_that_overflow_are_not_chosen(network, device):
    with torch.no_grad():
        network.patch_embed.proj.weight *= 1e6
    packed, x = PackedNetwork(network, torch.float16), torch.rand(1, 3, 16, 24, device=device)
    packed.to(torch.device(device))

    def seconds(call):
        call()
        return 1.0 if isinstance(call.func, triton_network._DenseOp) else 2.0

    with torch.no_grad():
        faster = packed.dense_where_faster(x, Workspace(), seconds)
    assert "patch_embed" not in faster


def test_results_have_the_same_bits_every_time_and_when_replayed_as_a_graph(network, device):
    if device != "cuda":
        pytest.skip("graphs want a GPU")
    restorer = SparseRestorer(network.to(device), "triton", tuning=Tuning({}, frozenset()))  # no dense steps
    images = [torch.rand(1, 3, 40, 56, device=device) for _ in range(2)]
    first = [restorer(image) for image in images]  # the second run records the graph, those after replay it
    memory = torch.cuda.memory_allocated()
    for i in range(20):
        assert torch.equal(restorer(images[i % 2]), first[i % 2])
    assert torch.cuda.memory_allocated() <= memory + 2**20
    other = restorer(torch.rand(1, 3, 16, 16, device=device))
    assert other.isfinite().all()
    assert torch.equal(restorer(images[0]), first[0])
