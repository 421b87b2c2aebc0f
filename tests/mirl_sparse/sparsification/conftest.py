import pytest
from sparsifying import Zoo, pruned
from torch import nn


@pytest.fixture
def zoo() -> nn.Module:
    """A pruned network with a layer of every kind."""
    return pruned(Zoo())
