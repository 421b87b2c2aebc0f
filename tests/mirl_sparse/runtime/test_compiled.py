"""SparseRestorer under torch.compile and torch.export: it becomes one op, mirl::restore."""

import io
import json

import pytest
import torch

from mirl_kernels.errors import BackendError
from mirl_sparse import SparseRestorer

IMAGE = torch.rand(2, 3, 19, 30, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["cpu", "reference"])
def restorer(request, network):
    return SparseRestorer(network, request.param)


def test_the_op_passes_the_checks_of_pytorch(restorer):
    weights = [p.detach() for p in restorer.network.parameters()]
    config = json.dumps(restorer.network.config.to_dict())
    results = torch.library.opcheck(
        torch.ops.mirl.restore.default, (IMAGE, weights, config, restorer.backend, 0)
    )
    assert set(results.values()) == {"SUCCESS"}


def test_a_compiled_restorer_gives_the_same_result_and_follows_its_weights(restorer):
    torch._dynamo.reset()
    compiled = torch.compile(restorer, fullgraph=True, backend="aot_eager")
    before = restorer(IMAGE)
    torch.testing.assert_close(compiled(IMAGE), before, rtol=0, atol=0)
    with torch.no_grad():
        restorer.network.output.weight.mul_(2)
    after = compiled(IMAGE)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, restorer(IMAGE), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_exported_restorer_can_be_saved_and_loaded_and_takes_any_size(network_of_any_resolution, backend):
    restorer = SparseRestorer(network_of_any_resolution, backend)
    sides = {2: torch.export.Dim("height", min=9, max=999), 3: torch.export.Dim("width", min=9, max=999)}
    exported = torch.export.export(restorer, (IMAGE,), dynamic_shapes={"image": sides})
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for image in (IMAGE, torch.rand(2, 3, 41, 12)):
        torch.testing.assert_close(loaded(image), restorer(image), rtol=0, atol=0)


def test_the_op_keeps_the_weights_of_two_networks_apart(network):
    one = SparseRestorer(network, "cpu")
    other = SparseRestorer(type(network)(network.config).requires_grad_(False), "cpu")
    config = json.dumps(network.config.to_dict())
    for restorer in (one, other, one):
        got = torch.ops.mirl.restore(IMAGE, list(restorer.network.parameters()), config, "cpu", 0)
        torch.testing.assert_close(got, restorer(IMAGE), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_an_image_of_another_dtype_is_refused_by_name(network, dtype):
    with pytest.raises(BackendError, match=f"input is {dtype}.*expected float32"):
        SparseRestorer(network, "cpu")(IMAGE.to(dtype))
