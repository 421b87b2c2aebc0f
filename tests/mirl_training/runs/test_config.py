"""Test that settings are checked before anything is read or trained, and refused in one line."""

import copy

import pytest
import yaml
from tiny import SETTINGS

from mirl_sparse.architectures.promptir import ConfigError
from mirl_training.runs import RunConfig, load_config


def changed(*path, value):
    settings = copy.deepcopy(SETTINGS)
    inner = settings
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return settings


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("training", "patchsize"), 5, r"training\.patchsize: no such setting; did you mean patch_size\?"),
        (("training", "learning_rate"), float("inf"), "learning_rate: .* finite"),
        (("nework",), {}, "nework"),
        (("network", "dim"), 7, "dim is 7"),
        (("network", "depth"), 7, "unknown network setting 'depth'"),
        (("network",), None, "network"),
        (("start",), "small", "either network"),
        (("regrow",), {"source": "small"}, "regrow is given without start"),
        (("regrow",), {"source": "small", "layers": []}, "regrow.layers: .* at least 1"),
        (("training", "steps"), 0, "greater than or equal to 1"),
        (("training", "patch_size"), 20, "multiple of 8"),
        (("pruning", "rate"), 1.0, "less than 1"),
        (("pruning", "criterion"), "best", "global"),
        (("pruning", "criterion"), "latency", "expected a speedup"),
        (("pruning", "speedup"), 2.0, "with no other"),
        (("pruning", "speedup"), 1.0, "greater than 1"),
        (("pruning", "rewind"), 9, "at most training.steps"),
        (("training", "warmup_steps"), 4, "round 0 is 4 steps long.*expected a shorter warm-up"),
        (("pruning", "final_steps"), 1, "round 2 is 1 steps long"),
        (("data", "tasks"), {"snow": 1}, "data: tasks asks for 'snow'"),
        (("data", "haze"), None, "names no folder"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(tmp_path, path, value, message):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed(*path, value=value)))
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["data: {}\ndata: {}\n", "data: {clean: a, memory: 1, clean: b}"])
def test_a_setting_given_twice_is_refused(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"a second (data|clean); expected one in .*line") as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "just words", "a: [", "\x00"])
def test_files_without_settings_are_refused(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


def test_the_shipped_configs_are_valid_and_come_back_from_yaml():
    from pathlib import Path

    files = sorted((Path(__file__).parents[3] / "training/configs").glob("*.yaml"))
    assert files
    for file in files:
        config = load_config(file)
        assert RunConfig(**yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


def test_runs_of_other_settings_have_other_digests():
    config = RunConfig(**SETTINGS)
    assert config.digest == RunConfig(**copy.deepcopy(SETTINGS)).digest
    assert config.digest != RunConfig(**changed("training", "seed", value=1)).digest
    assert len(config.digest) == 8


def test_settings_that_came_later_leave_digests_as_they_were():
    assert RunConfig(**SETTINGS).digest == "8e758bcb"
    assert RunConfig(**changed("training", "loss", value="psnr")).digest == "b1a94c8b"
    assert RunConfig(**changed("training", "psnr_ceiling", value=45)).digest != "8e758bcb"
