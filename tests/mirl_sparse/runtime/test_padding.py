"""Padding by reflection, for sides from one pixel up."""

import pytest
import torch

from mirl_sparse.runtime.padding import pad_to_multiple


@pytest.mark.parametrize(("height", "width"), [(5, 8), (7, 13), (16, 9)])
def test_large_enough_sides_are_padded_as_pytorch_does(height, width):
    image = torch.rand(2, 3, height, width)
    padding = (0, -width % 8, 0, -height % 8)
    assert torch.equal(pad_to_multiple(image, 8), torch.nn.functional.pad(image, padding, mode="reflect"))


def test_short_sides_are_reflected_several_times():
    row = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    padded = pad_to_multiple(row, 8)
    assert padded.shape == (1, 1, 8, 8)
    assert (padded == torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 3.0, 2.0])).all()


def test_an_image_that_needs_no_padding_is_returned_as_it_is():
    image = torch.rand(1, 3, 8, 16)
    assert pad_to_multiple(image, 8) is image
