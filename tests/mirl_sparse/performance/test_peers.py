"""Engines run the dense network where they can, and say why where they cannot."""

import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch

from mirl_sparse.performance import peers
from mirl_sparse.performance.comparison import Comparison
from mirl_sparse.performance.oracle import expected
from mirl_sparse.performance.peers import DENSE, EAGER, ENGINES, NOT_INSTALLED, Kind, Peer

IMAGE = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def compared(network, names):
    comparison = Comparison(network, expected(network, IMAGE), {}, IMAGE, ["dense eager", *names])
    with torch.no_grad():
        comparison.round()
    return comparison


class FakeOpenVINO(ModuleType):
    """OpenVINO, as far as it is called: runs what PyTorch traced, and notes how it is set up."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__("openvino")
        self.__spec__ = ModuleSpec("openvino", None)
        self.error, self.hints, self.shape = error, None, None

    def convert_model(self, traced, example_input, input):
        self.shape = input
        return traced

    def Core(self):
        return self

    def compile_model(self, model, device, hints):
        assert device == "CPU"
        self.model, self.hints = model, hints
        return self

    def create_infer_request(self):
        return self

    def infer(self, inputs):
        return [(self.model(torch.from_numpy(inputs[0])) + self.error).numpy()]


@pytest.fixture
def install(monkeypatch):
    def put(module: ModuleType) -> ModuleType:
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    return put


def test_an_installed_engine_is_timed_on_all_threads(network, install):
    openvino = install(FakeOpenVINO())
    comparison = compared(network, ["dense OpenVINO"])
    assert comparison.left_out == {}
    assert comparison.dense == ["dense eager", "dense OpenVINO"]
    assert len(comparison.times["dense OpenVINO"]) == 1
    assert openvino.shape == list(IMAGE.shape)
    threads = torch.get_num_threads()
    assert openvino.hints == {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}


def test_an_engine_with_a_wrong_result_is_left_out(network, install):
    install(FakeOpenVINO(error=0.5))
    comparison = compared(network, ["dense OpenVINO"])
    assert comparison.dense == ["dense eager"]
    assert "differs from the expected result" in comparison.left_out["dense OpenVINO"]


def test_an_engine_that_fails_is_left_out_with_the_first_line_of_its_error(network, install):
    openvino = install(FakeOpenVINO())

    def convert_model(*args, **options):
        raise ValueError("operator 'mirl' is unknown\nsee the log")

    openvino.convert_model = convert_model
    comparison = compared(network, ["dense OpenVINO"])
    assert comparison.left_out == {"dense OpenVINO": "ValueError: operator 'mirl' is unknown"}


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("dense ONNX Runtime", "onnxruntime"),
        ("dense OpenVINO", "openvino"),
        ("dense OpenVINO bfloat16", "openvino"),
        ("dense MNN", "MNN"),
        ("dense XNNPACK", "executorch"),
    ],
)
def test_an_engine_that_is_not_installed_is_left_out(network, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    comparison = compared(network, [name])
    assert comparison.left_out == {
        name: "not installed: run pip install '.[peers]' in the clone of mirl-sparse"
    }
    with pytest.raises(RuntimeError, match="not installed"):
        DENSE[name](network, IMAGE)


def test_bfloat16_needs_instructions_of_the_processor(network, install, monkeypatch):
    install(FakeOpenVINO())
    monkeypatch.setattr(peers, "_has_bfloat16", lambda: False)
    names = ["dense OpenVINO bfloat16", "dense compiled bfloat16"]
    comparison = compared(network, names)
    assert comparison.left_out == dict.fromkeys(names, "this processor has no bfloat16 instructions")


def test_xnnpack_is_not_compared_on_other_threads(install, monkeypatch):
    executorch = ModuleType("executorch")
    executorch.__spec__ = ModuleSpec("executorch", None)
    install(executorch)
    monkeypatch.setattr(os, "cpu_count", lambda: torch.get_num_threads() + 1)
    assert "uses all processors" in DENSE["dense XNNPACK"].unavailable()
    monkeypatch.setattr(os, "cpu_count", torch.get_num_threads)
    assert DENSE["dense XNNPACK"].unavailable() is None


def test_a_failure_of_pytorch_itself_is_raised(network, monkeypatch):
    def fail(network, image):
        raise ValueError("a bug")

    monkeypatch.setitem(DENSE, "dense channels_last", Peer(fail))
    with pytest.raises(ValueError, match="a bug"):
        compared(network, ["dense channels_last"])


def test_every_engine_that_can_run_here_gives_the_right_result(network):
    able = [name for name in ENGINES if DENSE[name].unavailable() is None]
    comparison = compared(network, ENGINES)
    assert comparison.dense == ["dense eager", *able]
    for name in set(ENGINES) - set(able):
        missing = [module for module in DENSE[name].modules if find_spec(module) is None]
        assert (comparison.left_out[name] == NOT_INSTALLED) == bool(missing)


def test_kinds_partition_the_dense_contenders():
    assert {name: DENSE[name].kind for name in EAGER} == dict.fromkeys(EAGER, Kind.EAGER)
    assert {name for name in DENSE if "compiled" in name} == set(peers.COMPILED)
    assert set(DENSE) == {*EAGER, *peers.COMPILED, *ENGINES}
