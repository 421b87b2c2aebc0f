"""The restorer of any network: sizes, channels, batches, memory and tiles."""

import copy
import pickle
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from sparsifying import SparseIsFree
from torch.nn import functional as F

if not find_spec("spandrel"):
    pytest.skip("spandrel is not installed", allow_module_level=True)

from image_networks import pruned

from mirl_sparse import NetworkRestorer, UserError
from mirl_sparse.architectures.image_network import ImageNetwork, SizeRule
from mirl_sparse.runtime.memory import peak_bytes
from mirl_sparse.runtime.tiling import restore_by_tiles


@pytest.fixture(autouse=True)
def every_layer_is_swapped(monkeypatch):
    monkeypatch.setattr("mirl_sparse.sparsification.cpu.cost_model", SparseIsFree)


def network(name: str) -> ImageNetwork:
    return ImageNetwork(name, pruned(name).state_dict())


@pytest.fixture(scope="module")
def nafnet() -> ImageNetwork:
    return network("NAFNet")


@pytest.fixture(scope="module")
def enlarging() -> ImageNetwork:
    return network("Compact")


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (17, 16)])
def test_any_size_is_restored(nafnet, enlarging, size) -> None:
    for net in (nafnet, enlarging):
        sparse, dense = NetworkRestorer(net), NetworkRestorer(net, "reference")
        x = rand(2, 3, *size)
        assert sparse(x).shape == (2, 3, net.scale * size[0], net.scale * size[1])
        torch.testing.assert_close(sparse(x), dense(x), atol=1e-5, rtol=0)
    assert sparse(x[:0]).shape == (0, 3, net.scale * size[0], net.scale * size[1])


def test_a_size_that_a_network_needs_is_made_by_reflection(nafnet, monkeypatch) -> None:
    restorer = NetworkRestorer(nafnet, "reference")
    monkeypatch.setattr(restorer.network, "size", SizeRule(minimum=24, multiple=8, square=True))
    seen = []
    restorer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = rand(1, 3, 20, 30)
    assert restorer(x).shape == x.shape
    assert seen[0].shape == (1, 3, 32, 32)
    torch.testing.assert_close(seen[0], F.pad(x, (0, 2, 0, 12), "reflect"))
    restorer.network._forward_pre_hooks.clear()


def test_a_grey_network_restores_each_channel_by_itself() -> None:
    grey = network("DnCNN")
    restorer, x = NetworkRestorer(grey), rand(2, 3, 20, 24)
    expected = torch.cat([grey(x[:, i : i + 1]) for i in range(3)], 1)
    torch.testing.assert_close(restorer(x), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(restorer(x[:, :1]), expected[:, :1], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"expected \(B, 3 or 1, H, W\)"):
        restorer(x[:, :2])


def test_a_network_of_four_channels_gets_photos_as_opaque() -> None:
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(0)
    state = Compact(num_in_ch=4, num_out_ch=4, num_feat=16, num_conv=2, upscale=2).state_dict()
    four, x = ImageNetwork("Compact", state), rand(1, 3, 9, 11)
    expected = four(torch.cat([x, torch.ones(1, 1, 9, 11)], 1))[:, :3]
    torch.testing.assert_close(NetworkRestorer(four)(x), expected, atol=1e-5, rtol=0)


def test_a_network_of_other_channels_takes_its_own_and_no_photos(nafnet, monkeypatch) -> None:
    restorer = NetworkRestorer(nafnet, "reference")
    monkeypatch.setattr(restorer.network, "output_channels", 2)
    assert restorer(rand(1, 3, 8, 8)).shape[2:] == (8, 8)
    with pytest.raises(UserError, match="takes images of 3 channels and gives 2"):
        restorer.restore(np.zeros((8, 8, 3), np.uint8))


def test_strength_blends_with_the_photo_enlarged(enlarging) -> None:
    restorer = NetworkRestorer(enlarging)
    photo = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    x = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    bicubic = F.interpolate(x, scale_factor=2, mode="bicubic")
    for strength in (0, 0.25, 1):
        expected = strength * restorer(x) + (1 - strength) * bicubic
        pixels = expected.clamp(0, 1).mul(255).round()[0].permute(1, 2, 0).numpy()
        assert np.abs(pixels - restorer.restore(photo, strength)).max() <= 1
    assert np.array_equal(restorer.restore(np.full((5, 5, 3), 77, np.uint8), 0), np.full((10, 10, 3), 77))


@pytest.mark.parametrize("name", ["Compact", "DRUNet"])
def test_a_large_photo_is_restored_in_tiles_as_the_whole(name) -> None:
    restorer, x = NetworkRestorer(network(name)), rand(1, 3, 300, 410)
    whole = restorer(x)
    restorer.max_memory = int(0.3 * restorer._needs(1, 300, 410)) + restorer._beside(300, 410)
    with pytest.warns(UserWarning, match="restored in tiles of"):
        tiled = restorer(x)
    assert tiled.shape == whole.shape
    # Networks whose receptive field is smaller than the overlap give the same but near its inner edge.
    assert (tiled - whole).abs().max() < 5e-2 * whole.abs().max()
    assert (tiled - whole).abs().mean() < 1e-3 * whole.abs().max()


def test_a_batch_is_split_before_an_image_is(nafnet, recwarn) -> None:
    restorer, x = NetworkRestorer(nafnet), rand(4, 3, 40, 48)
    whole = restorer(x)
    restorer.max_memory = restorer._needs(2, 40, 48)
    torch.testing.assert_close(restorer(x), whole, atol=1e-6, rtol=0)
    assert not recwarn.list


def test_too_little_memory_is_one_line(nafnet) -> None:
    restorer = NetworkRestorer(nafnet)
    restorer.max_memory = 1_000_000
    with pytest.raises(UserError, match="even tiles of"):
        restorer(rand(1, 3, 400, 300))


def test_square_tiles_cover_a_long_image(nafnet, monkeypatch) -> None:
    restorer, x = NetworkRestorer(nafnet, "reference"), rand(1, 3, 128, 500)
    whole = restorer(x)
    monkeypatch.setattr(restorer.network, "size", SizeRule(multiple=64, square=True))
    shapes = set()
    handle = restorer.network.register_forward_pre_hook(lambda _, inputs: shapes.add(inputs[0].shape[2:]))
    restorer.max_memory = restorer._needs(1, 192, 192) + restorer._beside(128, 512)
    with pytest.warns(UserWarning, match="restored in tiles of"):
        tiled = restorer(x)
    handle.remove()
    assert shapes == {(128, 128)}
    assert (tiled - whole).abs().mean() < 1e-2


def test_tiles_of_a_scale_blend_to_the_enlarged_image() -> None:
    x = rand(1, 3, 200, 230)
    enlarge = lambda t: F.interpolate(t, scale_factor=3)  # noqa: E731
    torch.testing.assert_close(restore_by_tiles(x, (130, 100), 1, enlarge, 3), enlarge(x))


def test_gradients_and_wrong_noise_levels_are_refused(nafnet) -> None:
    restorer = NetworkRestorer(nafnet)
    with pytest.raises(UserError, match="requires a gradient"):
        restorer(rand(1, 3, 8, 8).requires_grad_())
    with pytest.raises(UserError, match="takes no noise level"):
        restorer.noise_level = 5.0
    with pytest.raises(UserError, match="backend is 'triton', which does not run tickets of NAFNet"):
        NetworkRestorer(nafnet, "triton")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_a_restorer_is_copied_and_pickled(nafnet, duplicate) -> None:
    restorer, x = NetworkRestorer(nafnet), rand(1, 3, 12, 12)
    same = duplicate(restorer)
    torch.testing.assert_close(same(x), restorer(x))
    with torch.no_grad():
        next(restorer.network.parameters()).zero_()
    assert not torch.equal(same(x), restorer(x))


def test_the_peak_of_memory_counts_what_lives_at_one_time() -> None:
    def call() -> torch.Tensor:
        x = torch.ones(1000)
        for _ in range(10):
            x = x + 1  # the old and the new one
        return x.view(10, 100)

    assert peak_bytes(call) == 8000
