"""Test what is asked of GPUs, without one."""

import gc
from contextlib import contextmanager

import pytest
import torch

from mirl_sparse.runtime import gpu


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("no room"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=str,
)
def test_every_kind_of_out_of_memory_is_known(error):
    assert gpu.is_out_of_memory(error)
    try:
        try:
            raise error
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    except RuntimeError as last:
        assert gpu.is_out_of_memory(last)


def test_other_errors_of_a_gpu_are_not_out_of_memory():
    assert not gpu.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    looped = RuntimeError("one")
    looped.__context__ = RuntimeError("two")
    looped.__context__.__context__ = looped
    assert not gpu.is_out_of_memory(looped)


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_while_a_graph_is_recorded(collects, monkeypatch):
    collected = []

    @contextmanager
    def graph(graph, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    was = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError), gpu.capturing(None):
            collected.append(gc.isenabled())
            raise ZeroDivisionError
        assert collected == [False]
        assert gc.isenabled() == collects
    finally:
        (gc.enable if was else gc.disable)()
