"""The engines of the backends fulfil one protocol, and the restorer treats them alike."""

import subprocess
import sys

import pytest
import torch

from mirl_kernels.core.cpu import packed_matrix
from mirl_sparse import SparseRestorer, UserError
from mirl_sparse.runtime import BACKENDS

IMAGE = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_engine_restores_and_tells_its_memory(network, backend):
    engine = BACKENDS[backend].make_engine(network, "float32", None)
    assert not engine.has_plan(IMAGE)
    assert engine.cached_bytes == 0
    needed = engine.required_bytes(1, 16, 24)
    assert 0 < needed < engine.required_bytes(1, 64, 24) < engine.required_bytes(2, 64, 24)
    torch.testing.assert_close(engine(IMAGE), network(IMAGE), rtol=0, atol=1e-5)
    assert engine.cached_bytes == (needed if engine.has_plan(IMAGE) else 0)
    engine.release()
    assert engine.cached_bytes == 0
    assert not engine.has_plan(IMAGE)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_network_of_half_resolution_takes_images_of_any_size(half_resolution_network, backend):
    restorer = SparseRestorer(half_resolution_network, backend)
    assert restorer.engine().multiple == 16
    padded = torch.cat([IMAGE, IMAGE[..., -9:-1].flip(3)], 3)  # 24 columns become 32, by reflection
    want = half_resolution_network(padded)[..., :24]
    torch.testing.assert_close(restorer(IMAGE), want, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="multiples of 16"):
        restorer.engine()(IMAGE)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_gradient_of_the_image_is_refused_and_never_cut(network, backend):
    restorer, image = SparseRestorer(network, backend), IMAGE.clone().requires_grad_()
    with pytest.raises(UserError, match=r"requires a gradient.*restorer\.network"):
        restorer(image)
    with torch.no_grad():
        restorer(image)
    network(image).mean().backward()
    assert image.grad.any()


def test_an_engine_of_packed_weights_is_made_anew_only_when_weights_change(network):
    restorer = SparseRestorer(network, "cpu")
    engine = restorer.engine()
    assert restorer.engine() is engine
    with torch.no_grad():
        network.output.weight.mul_(2)
    assert restorer.engine() is not engine


def test_the_reference_follows_changes_that_pytorch_does_not_count(network):
    restorer = SparseRestorer(network, "reference")
    restorer(IMAGE)
    network.output.weight.data.zero_()
    assert torch.equal(restorer(IMAGE), IMAGE)  # only the residual remains


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_precision_that_the_backend_does_not_know_is_refused(network, backend):
    with pytest.raises(UserError, match=f"precision is 'float16' on backend '{backend}'; expected float32"):
        SparseRestorer(network, backend, precision="float16")


def test_bfloat16_on_the_cpu_is_closer_than_a_dense_network_in_bfloat16(network, monkeypatch):
    monkeypatch.setattr(packed_matrix, "TILES", 0.0)
    monkeypatch.setattr(packed_matrix, "VECTORS", 0.0)
    exact = network.double()(IMAGE.double())
    off = (SparseRestorer(network.float(), "cpu", precision="bfloat16")(IMAGE) - exact).abs().max()
    dense = (network.bfloat16()(IMAGE.bfloat16()).double() - exact).abs().max()
    assert 1e-5 < off < dense


@pytest.mark.parametrize("module", ["mirl_sparse.runtime", "mirl_sparse.runtime.restorer"])
def test_the_op_is_registered_wherever_the_restorer_can_be_imported(module):
    code = f"import torch; from {module} import SparseRestorer; torch.ops.mirl.restore.default"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
