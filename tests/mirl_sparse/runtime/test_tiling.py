"""Tiles cover the image, blend where they overlap, and are used when memory is short."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mirl_sparse import SparseRestorer, UserError
from mirl_sparse.runtime import memory
from mirl_sparse.runtime.tiling import OVERLAP, restore_by_tiles, tile_size, tiles


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([8, 16]), st.integers(192 * 192, 10**6))
def test_tiles_cover_the_image_stay_within_the_limit_and_overlap(rows, columns, multiple, limit):
    height, width = rows * multiple, columns * multiple
    tile = tile_size(height, width, multiple, limit, lambda h, w: h * w)
    assert tile[0] * tile[1] <= limit
    assert all(n % multiple == 0 for n in tile)
    if height * width <= limit:
        assert tile == (height, width)
    covered = torch.zeros(height, width)
    for rows, columns, weight in tiles(height, width, tile, multiple):
        assert weight.shape == covered[rows, columns].shape == tile
        assert (weight > 0).all()
        covered[rows, columns] += 1
    assert (covered >= 1).all()
    for axis in (0, 1):
        spans = sorted({(part[axis].start, part[axis].stop) for part in tiles(height, width, tile, multiple)})
        shared = [stop - start for (_, stop), (start, _) in itertools.pairwise(spans)]
        assert all(n > OVERLAP - multiple for n in shared)  # starts are multiples of it


def test_a_pixelwise_function_gives_the_same_result_by_tiles():
    image = torch.rand(2, 3, 300, 500)
    torch.testing.assert_close(restore_by_tiles(image, (160, 200), 8, lambda x: 2 * x + 1), 2 * image + 1)


def test_overlapping_tiles_blend_linearly():
    """One tile gives 0, the other 1: between them is a ramp without larger steps."""
    answers = iter([0.0, 1.0])
    result = restore_by_tiles(
        torch.zeros(1, 1, 64, 256), (64, 160), 8, lambda x: torch.full_like(x, next(answers))
    )
    row = result[0, 0, 0]
    assert (row[:96] == 0).all()
    assert (row[160:] == 1).all()
    assert (row.diff() >= 0).all()
    assert row.diff().max() < 1.5 / OVERLAP


def test_a_memory_limit_leads_to_tiles_with_a_warning(network_of_any_resolution):
    network = network_of_any_resolution
    image = np.random.default_rng(0).integers(0, 256, (200, 328, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = SparseRestorer(network).restore(image)
        roomy = SparseRestorer(network, max_memory=10**9).restore(image)
    assert (whole == roomy).all()
    restorer = SparseRestorer(network)
    buffers = restorer.engine().required_bytes(1, 208, 336)
    restorer.max_memory = buffers * 3 // 4 + 60 * 208 * 336
    with pytest.warns(UserWarning, match=r"restored in tiles of \d+x\d+"):
        tiled = restorer.restore(image)
    assert tiled.shape == image.shape
    assert np.abs(tiled.astype(float) - whole).mean() < 10
    restorer.max_memory = 1000
    with pytest.raises(UserError, match="allow that much"):
        restorer.restore(image)


def test_a_batch_that_does_not_fit_is_restored_in_parts(network):
    images = torch.rand(5, 3, 64, 96)
    model = SparseRestorer(network)
    expected = model(images)
    model.repack()
    model.max_memory = model.engine().required_bytes(2, 64, 96) + 60 * 2 * 64 * 96
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-6)
    assert not model.engine().has_plan(images)


def test_the_reference_backend_obeys_the_memory_limit_too(network):
    restorer = SparseRestorer(network, "reference", max_memory=30_000_000)
    with pytest.warns(UserWarning, match="restored in tiles"):
        assert restorer(torch.rand(1, 3, 200, 328)).shape == (1, 3, 200, 328)


def test_cached_buffers_of_other_sizes_are_freed_before_tiles_are_used(network, monkeypatch):
    """The machine has memory for one of the three sizes at a time."""
    model = SparseRestorer(network)
    images = [torch.rand(1, 3, *size) for size in ((200, 328), (328, 200), (256, 256))]
    expected = [model(image) for image in images]
    model.repack()
    whole = max(model.engine().required_bytes(1, *image.shape[2:]) for image in images)
    monkeypatch.setattr(memory, "available_memory", lambda: int(1.6 * whole) - model.engine().cached_bytes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert all(torch.equal(model(image), want) for image, want in zip(images, expected, strict=True))
    monkeypatch.undo()
    model.max_memory = int(1.6 * whole)
    for image in images:
        model(image)
        assert model.engine().cached_bytes <= model.max_memory
