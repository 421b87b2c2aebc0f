"""Damaged configs give a config or one line, whatever is damaged in them."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from damage import damaged
from tiny import SETTINGS

from mirl_sparse import UserError
from mirl_training.runs import load_config

_VALUES = [
    None,
    True,
    -1,
    0,
    2**70,
    1e308,
    "nan",
    float("nan"),
    float("inf"),
    "",
    "1e3",
    [],
    [[]],
    {},
    {1: 2},
]


def _places(settings, path=()):
    """Yield the path of every setting, at every depth."""
    items = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from _places(value, (*path, key))


def check(text: bytes, path: Path) -> None:
    path.write_bytes(text)
    try:
        load_config(path)
    except UserError as error:
        assert "\n" not in str(error)


def test_a_damaged_config_gives_a_config_or_one_line(tmp_path):
    text = yaml.safe_dump(SETTINGS).encode()
    for seed in range(300):
        check(damaged(text, np.random.default_rng(seed)), tmp_path / "a.yaml")


@pytest.mark.parametrize("value", _VALUES, ids=repr)
def test_a_config_with_any_value_anywhere_gives_a_config_or_one_line(value, tmp_path):
    for place in _places(SETTINGS):
        settings = yaml.safe_load(yaml.safe_dump(SETTINGS))
        inner = settings
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        check(yaml.safe_dump(settings).encode(), tmp_path / "a.yaml")


def test_deep_and_endless_configs_are_refused(tmp_path):
    for text in (
        b"[" * 5000,
        b"a: &a [*a]",
        b"&a {b: *a}",
        b"\0",
        b"\xff\xfe",
        b"!!python/object/apply:os.system [ls]",
    ):
        with pytest.raises(UserError) as caught:
            path = tmp_path / "a.yaml"
            path.write_bytes(text)
            load_config(path)
        assert "\n" not in str(caught.value)
