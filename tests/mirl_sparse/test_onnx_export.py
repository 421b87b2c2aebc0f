"""Export tickets to ONNX, and run the models with ONNX Runtime."""

import numpy as np
import pytest
import torch
from preloaded import mirl

from mirl_sparse import SparseRestorer, UserError, onnx_export
from mirl_sparse.tickets.file import write_ticket

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture
def ticket(network, tmp_path):
    path = tmp_path / "tiny.safetensors"
    write_ticket(path, network, {})
    return path


@pytest.mark.slow
def test_models_restore_images_of_any_size_as_tickets_do(ticket, network, tmp_path):
    done = mirl("export", ticket, "--onnx", cwd=tmp_path)
    assert not done.returncode
    assert "wrote tiny.onnx" in done.stdout
    assert not done.stderr
    model = onnxruntime.InferenceSession(tmp_path / "tiny.onnx", providers=["CPUExecutionProvider"])
    restorer = SparseRestorer(network)
    for shape in (1, 3, 1, 1), (3, 3, 40, 72), (1, 3, 5, 100), (2, 3, 129, 17):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        (restored,) = model.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(restored, restorer(image).numpy(), atol=1e-5, rtol=0)
    whole = onnx_export._AnySize(network)
    data = (tmp_path / "tiny.onnx").read_bytes()
    assert onnx_export._difference(whole, data) <= 1e-5
    whole.forward = lambda image, forward=whole.forward: forward(image) + 1e-3
    assert onnx_export._difference(whole, data) > 9e-4


def test_a_model_with_other_results_is_not_written(ticket, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_exported", lambda network: b"")
    monkeypatch.setattr(onnx_export, "_difference", lambda network, data: 2e-5)
    with pytest.raises(UserError, match=r"differs from PyTorch's by 2.0e-05; .* nothing was written"):
        onnx_export.export_onnx(ticket, tmp_path / "wrong.onnx")
    assert not (tmp_path / "wrong.onnx").exists()


def test_the_command_line_says_what_is_wrong(ticket, tmp_path):
    def error(*arguments):
        done = mirl("export", ticket, *arguments, cwd=tmp_path)
        assert done.returncode == 2
        return done.stderr

    assert error().endswith("expected --onnx (mirl-sparse compile writes programs)\n")
    assert "is the ticket itself" in error("--onnx", "-o", ticket)
