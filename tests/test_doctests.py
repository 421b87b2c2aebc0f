"""The examples in docstrings give the results that they show."""

import doctest
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "mirl_sparse", ROOT / "kernels/mirl_kernels", ROOT / "training/mirl_training")


def modules() -> list[str]:
    paths = (path.relative_to(p.parent).with_suffix("") for p in PACKAGES for path in p.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix(".__init__") for path in paths)


def needs_triton(name: str) -> bool:
    return name.startswith("mirl_kernels.core.triton") or name.endswith(".triton")


@pytest.mark.parametrize("name", modules())
def test_examples_of_a_module_give_what_they_show(name):
    if needs_triton(name) and find_spec("triton") is None:
        pytest.skip("the module needs Triton, which is not installed")
    if name == "mirl_sparse.integrations.spandrel" and find_spec("spandrel") is None:
        pytest.skip("the module needs spandrel, which is not installed")
    assert doctest.testmod(import_module(name)).failed == 0
