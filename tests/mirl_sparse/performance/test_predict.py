"""Predictions for GPUs count what they should, and every launch compiles for all GPUs without faults."""

import os
import re
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("triton interprets in this process", allow_module_level=True)

from configs import TINY

from mirl_kernels.core.triton import Launch, Tile, Work, Workspace, count_work, recording
from mirl_kernels.core.triton.model import DEPENDENT_LAUNCH, GPUS, LAUNCH, moved
from mirl_kernels.core.triton.model import predict as predict_launch
from mirl_kernels.core.triton.offline import (
    SHARED_MEMORY,
    Compiled,
    _loops,
    compile_ahead,
    compile_for,
    compile_kernel,
    specialised,
)
from mirl_kernels.ops.pointwise.triton import TritonPointwise
from mirl_sparse.architectures.promptir.config import PromptIRConfig
from mirl_sparse.architectures.promptir.network import PromptIR
from mirl_sparse.performance import predict as predictions
from mirl_sparse.performance.calibration import Calibration
from mirl_sparse.performance.dense_operators import (
    Kind,
    Operator,
    Traffic,
    compiled_operators,
    eager_operators,
    record,
)
from mirl_sparse.performance.predict import evicted_bytes, predict
from mirl_sparse.runtime.triton_network import PRECISIONS, PackedNetwork, launches

# The architectures and precisions that are compiled each time; the others are slow.
QUICK = (("sm_90", "float16"), ("gfx942", "float16"))


def pruned(config: PromptIRConfig, density: float) -> PromptIR:
    """Return random weights, of which every layer keeps its largest."""
    torch.manual_seed(0)
    network = PromptIR(config)
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim == 4 and p.numel() > 100:
                p *= p.abs() > p.abs().flatten().kthvalue(max(1, int(p.numel() * (1 - density)))).values
    return network


@pytest.fixture(scope="module")
def full():
    """MIR-L's network with 10.7% of every layer."""
    return pruned(PromptIRConfig(), 0.107)


def faults_of(architecture: str, precision: str, launches: list[Launch]) -> list[str]:
    """Return the faults of the launches as they are compiled."""
    compile_ahead(architecture, launches)
    faults = []
    for launch in launches:
        (chosen, done), name = compile_for(architecture, launch), launch.kernel.fn.__name__
        if done.spilled:
            unit = "registers" if architecture.startswith("gfx") else "bytes"
            faults.append(f"{name} in {chosen.tile}: {done.spilled} {unit} spilled")
        faults += [f"{name} in {chosen.tile}: {hazard} may overwrite a factor" for hazard in done.hazards]
        if done.shared > SHARED_MEMORY[architecture]:
            faults.append(f"{name}: {done.shared} bytes of shared memory of {SHARED_MEMORY[architecture]}")
        products = name in ("pointwise_kernel", "conv_kernel", "mix_kernel", "gram_kernel")
        if products and precision != "float32" and not done.tensor:
            faults.append(f"{name}: no tensor-core instruction")
        if len(done.loops) != len(count_work(chosen).trips):
            faults.append(f"{name}: {len(done.loops)} loops, {len(count_work(chosen).trips)} are counted")
    return faults


# Of large GPUs of each architecture: what a program takes upon itself depends on it.
PROCESSORS = {
    "sm_80": 108,
    "sm_86": 84,
    "sm_89": 128,
    "sm_90": 132,
    "sm_100": 148,
    "sm_120": 170,
    "gfx90a": 104,
    "gfx942": 304,
}


DEPENDENT = ("sm_90", "sm_100", "sm_120")  # launches may begin while the one before ends


def workspace_of(architecture: str) -> Workspace:
    cached = 8 << 20 if architecture.startswith("sm_") else 0
    return Workspace(cached, PROCESSORS[architecture], dependent=architecture in DEPENDENT)


def distinct(full: PromptIR, architecture: str, precision: str) -> list[Launch]:
    """The launches that are compiled apart: of a large and a small image, and of a tiny dense network."""
    by_specialisation = {}
    large, tiny = (PackedNetwork(network, PRECISIONS[precision]) for network in (full, pruned(TINY, 1.0)))
    for packed, shape in ((large, (1, 256, 256)), (large, (2, 72, 40)), (tiny, (1, 24, 16))):
        for step in launches(
            packed,
            shape,
            workspace_of(architecture),
        ).values():
            by_specialisation |= {specialised(architecture, launch): launch for launch in step}
    return list(by_specialisation.values())


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [
        pytest.param(a, p, marks=[] if (a, p) in QUICK else pytest.mark.slow)
        for a in SHARED_MEMORY
        for p in PRECISIONS
    ],
)
def test_every_launch_compiles_without_spills(full, architecture, precision):
    faults = faults_of(architecture, precision, distinct(full, architecture, precision))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_nothing_is_read_or_written_before_the_launches_before_have_ended(architecture):
    packed = PackedNetwork(pruned(TINY, 0.3), torch.float16)
    steps = launches(packed, (1, 24, 16), workspace_of(architecture))
    kernels = {launch.kernel: launch for step in steps.values() for launch in step}
    assert len(kernels) == 8
    for launch in kernels.values():
        ptx = compile_kernel(architecture, specialised(architecture, launch)).asm["ptx"]
        words = re.findall(r"griddepcontrol\.\w+|(?:ld|st)\.global|cp\.async|red\.|atom\.", ptx)
        if architecture == "sm_80":
            assert not any(word.startswith("griddepcontrol") for word in words)
        else:
            assert words[:2] == ["griddepcontrol.wait", "griddepcontrol.launch_dependents"]
            assert words.count("griddepcontrol.wait") == 1


def test_launches_that_begin_early_take_less_time_from_one_to_the_next():
    network, rows = pruned(TINY, 0.3), {}
    for name in ("H100 SXM", "A100 40GB"):
        gpu = GPUS[name]
        assert gpu.workspace().dependent == gpu.dependent == (name == "H100 SXM")
        prices = predictions._Prices(gpu, None)
        rows[name] = prices.sparse_gap, prices.gap
    assert rows == {"H100 SXM": (DEPENDENT_LAUNCH, LAUNCH), "A100 40GB": (LAUNCH, LAUNCH)}
    for row in predict(network, (1, 64, 64), gpus=["H100 SXM"]):
        sparse = row.launches - len(row.dense_steps)  # at least: a dense step has several operators
        assert row.sparse > DEPENDENT_LAUNCH * sparse


LOOPS = """
	mov.u32 %r9, 0x0;
$L__BB0_1:                              // =>This Loop Header: Depth=1
	mov.u32 %r1, 0x0;
	mov.u32 %r2, 0x0;
	ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 0 ];
	mov.u32 %r3, 0x0;
	@%p1 ld.global.b32 { %r3 }, [ %rd2 + 0 ];
	cp.async.ca.shared.global [ %r4 + 0 ], [ %rd3 + 0 ], 0x8, %r5;
	@%p2 bra 	$L__BB0_1;
$L__BB0_2:                              // =>This Loop Header: Depth=1
                                        //   in Loop: Header=BB0_2 Depth=1
	cp.async.ca.shared.global [ %r4 + 0 ], [ %rd3 + 0 ], 0x8, %r5;
	@%p3 bra 	$L__BB0_2;
	ret;
"""


def test_zeros_that_a_load_replaces_do_not_count_and_copies_alone_are_not_waited_for():
    loops, waits, outside = _loops(LOOPS)
    assert waits == (True, False)
    assert loops[0] == 5  # the loads, the zero where a mask may be off, the copy, the branch
    assert outside == 1


def test_traffic_is_a_fraction_of_the_dense_network(full):
    done = [
        (launch, count_work(launch))
        for step in launches(PackedNetwork(full, torch.float16), (1, 256, 256)).values()
        for launch in step
    ]
    cached = Workspace.cached
    assert all(w.buffer <= cached for _, w in done)
    total = sum(moved(w, cached) for _, w in done) + evicted_bytes(done, cached)
    dense, image = PromptIR(full.config).to("meta", torch.float16), torch.empty(1, 3, 256, 256, device="meta")
    with torch.no_grad():
        eager = eager_operators(record(lambda: dense(image.half())))
    assert 13e9 < sum(o.moved() for o in eager) < 15e9
    assert total < 2e9
    assert total < sum(o.moved(cached) for o in eager) / 4


def test_hidden_channels_of_another_level_reach_memory_after_all():
    def launch(width):
        return Launch(None, (1, 1, 1), {"width": width}, Tile({}, 4))

    def hidden(size):
        return Work(size, 0, 0, 0, (), hidden=size, buffer=size)

    done = [
        (launch(8), hidden(5)),
        (launch(8), hidden(7)),
        (launch(8), Work(9, 9, 0, 0, ())),
        (launch(4), hidden(3)),
        (launch(8), hidden(6)),
    ]
    assert evicted_bytes(done, 8) == 7 + 3 + 6
    assert evicted_bytes(done, 6) == 5 + 3 + 6  # what the cache does not hold is counted where it is written
    assert [moved(w, 6) for _, w in done] == [0, 7, 18, 0, 0]


def test_a_launch_takes_what_its_bytes_and_products_take():
    op, x = (
        TritonPointwise(torch.ones(64, 64, 1, 1)),
        torch.empty(1, 64, 256, 256, dtype=torch.float16, device="meta"),
    )
    with recording() as launches:
        op(x)
    predicted = predict_launch(launches[0], GPUS["H100 SXM"])
    features = 64 * 65536 * 2  # bytes; the weights are a thousandth of them
    assert predicted.memory == pytest.approx(2 * features / 3.35e12, rel=2e-3)
    busiest = 4 * 132 / 512  # it has 4 programs of 512, and there are 132 processors
    assert predicted.tensor == pytest.approx(64 * 64 * 65536 / 495e12 * busiest)
    assert features / predicted.cache < 132 * 64 * 1.83e9  # weights are fetched by every program
    # At the very least the products: 16 x 8 x 16 in an instruction of 32 lanes.
    assert predicted.issue > 64 * 64 * 65536 / 2048 * 32 / (132 * 128 * 1.83e9)
    assert predicted.waiting >= 500 / 1.83e9
    busiest = max(predicted.memory, predicted.issue)
    assert predicted.seconds() == pytest.approx(max(busiest, predicted.waiting) + 1.5e-6)
    assert predicted.seconds(0.5) == pytest.approx(max(2 * busiest, predicted.waiting) + 1.5e-6)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "programs"),
    [
        (32, 0, 4, 16),
        (255, 0, 8, 1),
        (128, 0, 4, 4),
        (32, 100 << 10, 4, 2),
        (0, 0, 1, 32),
        (255, 227 << 10, 8, 1),
    ],
)
def test_a_processor_runs_as_many_programs_as_fit(registers, shared, warps, programs):
    compiled = Compiled(0, registers, shared, frozenset(), (), (), 0)
    assert compiled.resident("sm_90", warps) == programs


def test_programs_that_do_not_run_together_wait_one_after_the_other():
    waiting = []
    for pixels in (128, 256):  # each way
        x = torch.empty(1, 16, pixels, pixels, dtype=torch.float16, device="meta")
        with recording() as launches:
            TritonPointwise(torch.ones(16, 16, 1, 1))(x)
        launch = launches[0]
        few = replace(GPUS["H100 SXM"], processors=1)
        waiting.append(predict_launch(launch, few).waiting)
    assert waiting[1] == pytest.approx(4 * waiting[0], rel=0.2)


def test_fused_operators_do_not_move_what_only_they_read():
    class Network(torch.nn.Module):
        def forward(self, x, w):
            y = torch.nn.functional.gelu(x) * 2 + 1  # fused: reads x, writes y
            z = torch.nn.functional.conv2d(y, w)  # reads y and w, writes z
            return z.relu() + y  # fused: reads z and y, writes the result

    x, w = torch.empty(1, 8, 16, 16, device="meta"), torch.empty(8, 8, 1, 1, device="meta")
    calls = record(lambda: Network()(x, w))
    eager, compiled = eager_operators(calls), compiled_operators(calls)
    n, k = 4 * 8 * 256, 4 * 64
    assert sorted(o.moved() for o in compiled) == sorted([2 * n, 2 * n + k, 3 * n])
    assert [o.moved() for o in eager] == [2 * n, 2 * n, 2 * n, 2 * n + k, 2 * n, 3 * n]
    assert sum(o.macs for o in compiled) == 8 * 8 * 256
    assert [o.moved(n) for o in eager] == [n, 0, 0, k, 0, 0]  # what was made before stays in the cache
    assert [o.moved(n - 1) for o in eager] == [o.moved() for o in eager]


def test_a_dense_operator_takes_what_its_bytes_or_products_take_and_a_launch():
    gpu = GPUS["A100 40GB"]
    moves = Operator((Traffic(10**6, False),), 1)
    multiplies = Operator((Traffic(1, False),), 10**9)
    assert moves.seconds(gpu, LAUNCH) == pytest.approx(1e6 / gpu.memory + LAUNCH)
    assert multiplies.seconds(gpu, LAUNCH, 0.5) == pytest.approx(2e9 / gpu.tensor + LAUNCH)
    assert moves.seconds(gpu, LAUNCH, least=1e-3) == 1e-3


def test_a_network_is_predicted_for_every_gpu():
    network = pruned(TINY, 0.3)
    predictions = predict(network, (1, 64, 64), gpus=["A100 40GB", "L4"])
    features = 2 * TINY.dim * 64 * 64 * 4  # read and written by two blocks at least, in float16
    assert [row.gpu for row in predictions] == ["A100 40GB", "L4"]
    for row in predictions:
        assert 0 < row.compiled <= row.eager
        assert row.launches * LAUNCH < row.sparse < row.sparse_derated
        assert features < row.sparse_bytes
        assert set(row.dense_steps) < set(launches(PackedNetwork(network, torch.float16), (1, 64, 64)))


def test_a_calibrated_gpu_is_predicted_by_its_own_constants(monkeypatch):
    network = pruned(TINY, 0.3)
    peaks = Calibration("L4", LAUNCH, 1.0, 1.0, 1.0, 1.0, {"any": 1.0}, measured="today")
    sparse = replace(peaks, dense={kind.value: 1e-6 for kind in Kind})  # dense operators are hopeless
    rows = []
    for calibration in (None, peaks, sparse, replace(sparse, launch=3 * LAUNCH)):
        monkeypatch.setattr(predictions, "read_calibration", lambda gpu, found=calibration: found)
        rows += predict(network, (1, 64, 64), gpus=["L4"])
    assert replace(rows[1], calibrated="") == rows[0]
    assert [row.calibrated for row in rows] == ["", "today", "today", "today"]
    assert rows[2].dense_steps == ()
    assert rows[3].sparse - rows[2].sparse == pytest.approx(2 * LAUNCH * rows[3].launches)
    assert rows[2].compiled > 100 * rows[1].compiled


def test_steps_that_dense_operators_do_faster_are_left_to_them(monkeypatch):
    network, rows = pruned(TINY, 0.3), []
    for memory, clock in (
        (1e9, 1e15),
        (1e15, 1e6),
    ):  # bytes/s and Hz: nothing matters but bytes, or instructions
        gpu = replace(GPUS["A100 40GB"], memory=memory, clock=clock, cache=1e16, tensor=1e19, cached=0)
        monkeypatch.setitem(GPUS, "made up", gpu)
        rows += predict(network, (1, 64, 64), gpus=["made up"])
    steps = launches(PackedNetwork(network, torch.float16), (1, 64, 64), Workspace(0))
    assert [row.dense_steps for row in rows] == [(), tuple(steps)]
    assert rows[0].launches == sum(map(len, steps.values()))
