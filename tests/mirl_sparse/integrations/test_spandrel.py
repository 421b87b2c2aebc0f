"""Programs that are built on spandrel load PromptIR checkpoints and tickets."""

from importlib.util import find_spec

import pytest
import torch

if not find_spec("spandrel"):
    pytest.skip("spandrel is not installed", allow_module_level=True)

from image_networks import pruned

from mirl_sparse import SparseRestorer
from mirl_sparse.architectures.image_network import NetworkWeights
from mirl_sparse.architectures.image_network import registry as known_networks
from mirl_sparse.integrations.spandrel import register
from mirl_sparse.tickets import find_ticket, pack_network, read_ticket
from mirl_sparse.tickets.file import write_ticket

IMAGE = torch.rand(1, 3, 37, 50, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def loader():
    """A loader of spandrel, with a registry of its own in which Restormer is too, where that is installed."""
    import spandrel

    registry = known_networks().copy()
    register(registry)
    register(registry)
    return spandrel.ModelLoader(registry=registry)


def test_a_shipped_ticket_is_loaded(loader) -> None:
    descriptor = loader.load_from_file(find_ticket("small"))
    network = read_ticket(find_ticket("small"))[0]
    assert descriptor.architecture.id == "PromptIR"
    assert (descriptor.scale, descriptor.input_channels, descriptor.output_channels) == (1, 3, 3)
    assert descriptor.model.config == network.config
    for name, value in network.state_dict().items():
        assert torch.equal(descriptor.model.state_dict()[name], value), name
    expected = SparseRestorer(network)(IMAGE).clamp(0, 1)
    torch.testing.assert_close(descriptor(IMAGE), expected, atol=1e-5, rtol=0)


def test_the_config_of_any_ticket_is_inferred_from_its_tensors(
    loader, network_of_any_resolution, tmp_path
) -> None:
    network = network_of_any_resolution
    write_ticket(tmp_path / "t.safetensors", network, {})
    descriptor = loader.load_from_file(tmp_path / "t.safetensors")
    torch.testing.assert_close(
        descriptor(IMAGE), SparseRestorer(network, "reference")(IMAGE).clamp(0, 1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("prefix", ["", "net.", "module."])
def test_a_dense_checkpoint_is_a_promptir_and_no_restormer(loader, network, prefix, tmp_path) -> None:
    state = {prefix + name: value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "p.ckpt")
    descriptor = loader.load_from_file(tmp_path / "p.ckpt")
    assert descriptor.architecture.id == "PromptIR"
    assert descriptor.size_requirements.multiple_of == 8
    expected = SparseRestorer(network, "reference")(IMAGE).clamp(0, 1)
    torch.testing.assert_close(descriptor(IMAGE), expected, atol=1e-5, rtol=0)


def test_the_model_of_a_promptir_runs_in_other_types(loader, network, tmp_path) -> None:
    torch.save(network.state_dict(), tmp_path / "p.pth")
    descriptor = loader.load_from_file(tmp_path / "p.pth").bfloat16()
    image = IMAGE[..., :32, :48].bfloat16()
    assert descriptor(image).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["NAFNet", "SwinIR"])
def test_a_ticket_of_another_network_is_loaded(loader, name, tmp_path) -> None:
    dense = pruned(name)
    weights = NetworkWeights(name, dict(dense.state_dict()), "")
    (tmp_path / "t.safetensors").write_bytes(pack_network(weights, {}))
    descriptor = loader.load_from_file(tmp_path / "t.safetensors")
    assert descriptor.architecture.id == name
    for key, value in dense.state_dict().items():
        assert torch.equal(descriptor.model.state_dict()[key], value), key


@pytest.mark.skipif(not find_spec("spandrel_extra_arches"), reason="Restormer is not installed")
def test_a_restormer_stays_one(loader) -> None:
    assert loader.load_from_state_dict(dict(pruned("Restormer").state_dict())).architecture.id == "Restormer"
