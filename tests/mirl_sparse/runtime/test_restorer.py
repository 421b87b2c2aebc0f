"""SparseRestorer as a module: its inputs, backends, threads and instruction sets."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.utils import prune

from mirl_kernels.core import cpu, native
from mirl_kernels.errors import BackendError
from mirl_sparse import PromptIR, PromptIRConfig, SparseRestorer, UserError
from mirl_sparse.tickets.file import write_ticket


def test_restore_takes_paths_images_and_arrays(network, tmp_path):
    restorer = SparseRestorer(network)
    array = np.random.default_rng(0).integers(0, 256, (19, 30, 3)).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    expected = restorer.restore(array)
    assert expected.dtype == np.uint8
    assert expected.shape == array.shape
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array[::-1][::-1]):
        np.testing.assert_array_equal(restorer.restore(source), expected)
    exact = SparseRestorer(network, "reference")(torch.from_numpy(array).permute(2, 0, 1).float()[None] / 255)
    np.testing.assert_array_equal(expected, (exact[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), 3]
)
def test_something_else_than_an_image_is_refused_in_one_line(network, image):
    with pytest.raises(UserError, match="expected a path, a PIL image or a uint8 or uint16 array") as caught:
        SparseRestorer(network).restore(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8)])
def test_a_tensor_that_is_no_batch_of_images_is_refused(network, shape):
    with pytest.raises(ValueError, match="expected"):
        SparseRestorer(network)(torch.zeros(shape))


def test_masks_of_torch_take_effect_whenever_they_are_applied(network):
    layer = network.refinement[0].ffn.project_out
    prune.random_unstructured(layer, "weight", 0.5)
    model, x = SparseRestorer(network), torch.rand(1, 3, 16, 24)
    for amount in (0, 0.4):
        if amount:
            prune.l1_unstructured(layer, "weight", amount)
        restored = model(x)
        assert not next(layer.parameters()).requires_grad
        torch.testing.assert_close(restored, SparseRestorer(network, "reference")(x), rtol=0, atol=1e-5)
        assert float((layer.weight == 0).float().mean()) >= 0.5
        assert torch.equal(torch.compile(model, fullgraph=True)(x), restored)
    compiled = torch.compile(model, fullgraph=True)
    layer.weight.data.zero_()  # which PyTorch does not count
    expected = SparseRestorer(network, "reference")(x)
    assert not torch.equal(expected, restored)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    assert torch.equal(compiled(x), restored)
    model.repack()
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-5)


def test_single_weights_written_uncounted_take_effect_after_repack(network):
    model, x = SparseRestorer(network), torch.rand(1, 3, 16, 24)
    restored = model(x)
    weight = network.output.weight.data
    weight.view(-1)[weight.flatten().nonzero()[-1]] *= 100
    assert torch.equal(model(x), restored)
    model.repack()
    expected = SparseRestorer(network, "reference")(x)
    assert not torch.equal(expected, restored)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)


def test_weights_of_a_fused_optimizer_take_effect(network):
    model, x = SparseRestorer(network), torch.rand(1, 3, 16, 24)
    model(x)
    steps = torch.optim.Adam(network.requires_grad_().parameters(), 1e-2, fused=True)
    network(x).square().mean().backward()
    steps.step()
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(x), rtol=0, atol=1e-5)


def test_an_unknown_backend_is_refused(network):
    with pytest.raises(UserError, match="backend is 'gpu'"):
        SparseRestorer(network, "gpu")


def test_the_memory_layout_of_the_input_does_not_matter_and_nans_leave_no_trace(network):
    restorer = SparseRestorer(network)
    x = torch.rand(2, 3, 16, 24)
    expected = restorer(x)
    torch.testing.assert_close(
        restorer(x.contiguous(memory_format=torch.channels_last)), expected, atol=0, rtol=0
    )
    torch.testing.assert_close(
        restorer(x.transpose(2, 3).contiguous().transpose(2, 3)), expected, atol=0, rtol=0
    )
    assert torch.isnan(restorer(torch.full_like(x, torch.nan))).all()
    assert torch.equal(restorer(x), expected)  # nothing of the NaNs is left in the buffers


def test_results_do_not_share_memory(network):
    restorer = SparseRestorer(network)
    x = torch.rand(1, 3, 16, 16)
    first = restorer(x)
    kept = first.clone()
    restorer(1 - x)
    assert torch.equal(first, kept)


def test_copies_have_weights_of_their_own_and_new_weights_take_effect(network):
    restorer = SparseRestorer(network, "cpu")
    x = torch.rand(1, 3, 16, 16)
    before = restorer(x)
    for copied in (copy.deepcopy(restorer), pickle.loads(pickle.dumps(restorer))):
        assert torch.equal(copied(x), before)
    state = {name: value.clone() for name, value in restorer.state_dict().items()}
    state["network.output.weight"] *= 0
    copied.load_state_dict(state)
    assert torch.equal(copied(x), x)  # what is left is the residual
    assert torch.equal(restorer(x), before)
    with torch.no_grad():
        copied.network.output.weight.add_(state["network.patch_embed.proj.weight"].mean())
    torch.testing.assert_close(copied(x), copied.network(x), atol=1e-5, rtol=0)
    assert not torch.equal(copied(x), x)
    with pytest.raises(BackendError, match="weights are on meta; expected the CPU"):
        copied.to("meta")(x)


def test_inference_mode_may_be_entered_and_left_between_calls(network, tmp_path):
    write_ticket(tmp_path / "t.safetensors", network, {})
    x = torch.rand(1, 3, 16, 16)
    expected = SparseRestorer(network, "cpu")(x)
    with torch.inference_mode():
        restorer = SparseRestorer.from_pretrained(tmp_path / "t.safetensors", "cpu")
        assert torch.equal(restorer(x), expected)
    assert torch.equal(restorer(x), expected)
    with torch.inference_mode():
        assert torch.equal(restorer(x.clone()), expected)


def test_more_sizes_than_are_cached_may_take_turns(network):
    """More sizes than the engine keeps buffers for."""
    restorer, reference = SparseRestorer(network, "cpu"), SparseRestorer(network, "reference")
    images = [
        torch.rand(b, 3, h, w) for b, h, w in ((1, 8, 8), (2, 40, 16), (1, 9, 30), (1, 8, 8), (3, 17, 1))
    ]
    for x in images + images[::-1]:
        torch.testing.assert_close(restorer(x), reference(x), atol=1e-5, rtol=0)


def test_many_threads_may_share_a_restorer(network):
    shared = SparseRestorer(network, "cpu")
    others = [SparseRestorer(copy.deepcopy(network), "cpu") for _ in range(3)]
    images = [torch.rand(1, 3, 24 + 8 * (i % 3), 32) for i in range(24)]
    expected = [shared(x) for x in images]
    with ThreadPoolExecutor(6) as pool:
        for restorers in ([shared] * 24, (others * 8)):
            results = list(pool.map(lambda r, x: r(x), restorers, images))
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_number_of_threads_gives_nearly_the_same_result(network, threads):
    """The partial sums of the Gram matrix depend on the strips, and these on the threads."""
    x = torch.rand(1, 3, 72, 56)
    before = torch.get_num_threads()
    expected = SparseRestorer(network, "cpu")(x)
    try:
        torch.set_num_threads(threads)
        actual = SparseRestorer(network, "cpu")(x)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


RESTORE = """
import sys, torch
from mirl_kernels.core import cpu, native
from mirl_sparse import SparseRestorer
assert cpu.isa() == sys.argv[2], cpu.isa()
x = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
restorer = SparseRestorer.from_pretrained(sys.argv[1], "cpu")
reference = SparseRestorer.from_pretrained(sys.argv[1], "reference")
print((restorer(x) - reference(x)).abs().max().item())
"""


def run_python(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=300,
    )


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_of_this_processor_restores_like_the_reference(network, tmp_path, isa):
    write_ticket(tmp_path / "t.safetensors", network, {})
    done = run_python(RESTORE, str(tmp_path / "t.safetensors"), isa, MIRL_CPU_ISA=isa)
    has = {"AVX2": ["avx2"], "AVX512": ["avx2", "avx512"]}.get(torch.backends.cpu.get_cpu_capability(), [])
    if isa not in ["portable", *has]:
        assert f"MIRL_CPU_ISA is '{isa}'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) <= 1e-5


def test_an_instruction_set_that_this_processor_lacks_is_an_error(tmp_path):
    told = run_python(
        "from mirl_sparse.performance import doctor; print(doctor.machine()['C++ kernels'])",
        MIRL_CPU_ISA="sse9",
    )
    assert "MIRL_CPU_ISA is 'sse9'" in told.stdout
    done = run_python("from mirl_kernels.core import cpu; cpu.load_library()", MIRL_CPU_ISA="sse9")
    assert (
        "MIRL_CPU_ISA is 'sse9', which this processor cannot run; expected avx512, avx2 or portable"
        in done.stderr
    )


def test_without_the_kernels_auto_uses_the_reference_with_a_warning(network, monkeypatch):
    cpu.load_library.cache_clear()
    monkeypatch.setattr(native, "LIBRARY", "missing.so")
    try:
        with pytest.warns(UserWarning, match="install a C\\+\\+17 compiler"):
            restorer = SparseRestorer(network)
        assert restorer.backend == "reference"
        x = torch.rand(1, 3, 8, 8)
        assert torch.equal(restorer(x), network(x))
        with pytest.raises(BackendError, match="were not built"):
            SparseRestorer(network, "cpu")
    finally:
        cpu.load_library.cache_clear()


def test_kernels_of_another_version_are_refused():
    with pytest.raises(BackendError, match="of another version"):
        cpu.Call("gdfn", cpu.Image())


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_running_out_of_memory_raises_an_error_and_the_process_goes_on(tmp_path):
    """In a worker thread as in the caller."""
    code = """
import resource, threading, torch
from mirl_kernels.core import cpu, native
from mirl_kernels.ops.pointwise import PackedPointwise
torch.set_num_threads(2)
op = PackedPointwise(torch.ones(4, 400000, 1, 1))
x, out = torch.ones(1, 400000, 2, 8), torch.empty(1, 4, 2, 8)
limit = int(open("/proc/self/statm").read().split()[0]) * 4096 + (64 << 20)
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
for _ in range(3):
    try:
        op.bind(x, out)()
        print("ran")
    except MemoryError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
op.bind(x, out)()
print(bool((out == 400000).all()))
"""
    done = run_python(code)
    assert done.stdout.splitlines() == ["mirl_pointwise ran out of memory"] * 3 + ["True"], done.stderr


def test_importing_neither_loads_triton_nor_touches_a_device():
    code = """
import sys, torch
from mirl_sparse import SparseRestorer
assert 'triton' not in sys.modules
assert not torch.cuda.is_initialized()
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_buffers_share_memory_and_stay_within_the_documented_size():
    """Large images take 746 bytes per pixel at full size; rows are padded to whole vectors."""
    from mirl_sparse.runtime.cpu import CpuEngine

    config = PromptIRConfig(num_blocks=(1, 1, 1, 1), num_refinement_blocks=1)
    engine = CpuEngine(PromptIR(config).requires_grad_(False))
    assert engine.required_bytes(1, 3000, 4000) / 12e6 < 800
    assert engine.required_bytes(2, 256, 256) / 2 / 65536 < 900
    assert engine.required_bytes(1, 3000, 4000) / engine.required_bytes(1, 1504, 2000) == pytest.approx(
        4, rel=0.03
    )


@torch.no_grad()
def test_blocks_without_weights_are_run(network):
    """No live v: no scratch memory either. No layer at all: the image, through the residual connections."""
    image = torch.rand(1, 3, 16, 24)
    network.encoder_level1[0].attn.qkv.weight.zero_()
    torch.testing.assert_close(SparseRestorer(network, "cpu")(image), network(image), atol=1e-5, rtol=0)
    for name, p in network.named_parameters():
        if name.endswith("weight") and p.ndim > 1:
            p.zero_()
    torch.testing.assert_close(SparseRestorer(network, "cpu")(image), image, atol=0, rtol=0)
