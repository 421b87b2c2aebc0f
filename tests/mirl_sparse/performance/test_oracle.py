"""The expected result is what PyTorch computes in float64."""

import pytest
import torch

from mirl_sparse.performance.oracle import expected


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (5, 1), "padding": (2, 0), "bias": False},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "dilation": 2},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    ],
)
def test_depthwise_convolutions_are_what_pytorch_computes_in_float64(options):
    layer, image = torch.nn.Conv2d(6, 6, groups=6, **options), torch.randn(2, 6, 200, 100)
    torch.testing.assert_close(expected(layer, image), layer.double()(image.double()), rtol=0, atol=1e-13)
