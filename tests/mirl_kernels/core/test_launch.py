"""Test in which tile a Triton kernel is launched. The kernel is made up."""

import math

import pytest
import torch

from mirl_kernels.core.triton import Tile, Tuner, Workspace, launch, launches, recording
from mirl_kernels.errors import BackendError

TILES = [Tile({"BLOCK_P": 128}, 4), Tile({"BLOCK_P": 128}, 8), Tile({"BLOCK_P": 64}, 4, pipelined=False)]


class Kernel:
    """Spill so much, by pixels and warps, as the test says."""

    arg_names, __name__ = ("x", "y", "BLOCK_P", "ROWS"), "kernel"

    def __init__(self, *spills):
        self.spills, self.compiled, self.launched = (
            dict(zip([(128, 4), (128, 8), (64, 4)], spills, strict=True)),
            [],
            [],
        )

    def warmup(self, x, y, grid, BLOCK_P, ROWS, num_warps, num_stages, enable_fp_fusion):
        self.compiled.append((BLOCK_P, num_warps))
        return _Compiled(self.spills[BLOCK_P, num_warps])

    def __getitem__(self, grid):
        return lambda x, y, **constants: self.launched.append((grid, constants))


class _Compiled:
    """Know what spills once it is loaded."""

    def __init__(self, spills):
        self.spills = spills

    asm = {}  # noqa: RUF012 - of machine code

    def _init_handles(self):
        self.n_spills = self.spills


def made(kernel, workspace=None):
    def grid(sizes):
        return 1024 // sizes["BLOCK_P"], 1, 1

    launch(workspace or Workspace(), kernel, grid, torch.zeros(1), 3, ROWS=16, tiles=TILES)
    return kernel.launched[-1]


@pytest.mark.parametrize(("spills", "nth"), [((0, 0, 0), 0), ((8, 0, 0), 1), ((8, 4, 0), 2), ((8, 4, 6), 1)])
def test_the_first_tile_that_spills_nothing_or_else_the_least_is_launched(spills, nth, monkeypatch):
    monkeypatch.setattr(launches, "_spilled", {})
    kernel, tile = Kernel(*spills), TILES[nth]
    for _ in range(2):
        grid, constants = made(kernel)
        assert grid == (1024 // tile.sizes["BLOCK_P"], 1, 1)
        assert constants == {
            "ROWS": 16,
            **tile.sizes,
            "num_warps": tile.warps,
            "num_stages": 3 if tile.pipelined else 1,
            "enable_fp_fusion": True,
        }
    assert len(kernel.compiled) == len(set(kernel.compiled)) <= 3  # once


def test_each_launch_takes_the_first_of_its_tiles_that_spills_nothing(monkeypatch):
    monkeypatch.setattr(launches, "_spilled", {})
    kernel = Kernel(0, 8, 0)
    for order, nth in ((TILES, 0), (TILES[::-1], 2), (TILES[1:], 2)):
        launch(Workspace(), kernel, lambda sizes: (1, 1, 1), torch.zeros(1), 3, ROWS=16, tiles=order)
        assert kernel.launched[-1][1]["BLOCK_P"] == TILES[nth].sizes["BLOCK_P"]
    assert len(kernel.compiled) == len(set(kernel.compiled))


def test_a_tile_that_is_miscompiled_is_not_launched(monkeypatch):
    monkeypatch.setattr(launches, "_spilled", {})
    monkeypatch.setattr(launches, "hazards_of", lambda compiled: ["MOV R1, R2"] * (compiled.spills == 5))
    assert made(Kernel(5, 8, 6))[1]["BLOCK_P"] == 64
    monkeypatch.setattr(launches, "_spilled", {})
    with pytest.raises(BackendError, match=r"miscompiled for this GPU in every tile.*TRITON_PTXAS_PATH"):
        made(Kernel(5, 5, 5))


def test_a_graph_cannot_be_recorded_before_the_kernel_ran(monkeypatch):
    monkeypatch.setattr(launches, "_spilled", {})
    monkeypatch.setattr(launches, "_launched", set())
    kernel, recorded = Kernel(0, 0, 0), [True]
    monkeypatch.setattr(launches, "_is_capturing", lambda tensor: recorded[-1])
    with pytest.raises(BackendError, match="call once with an input of this size before you record"):
        made(kernel)
    assert not kernel.compiled and not kernel.launched
    recorded.append(False)
    made(kernel)
    recorded.append(True)
    made(kernel)
    assert len(kernel.launched) == 2
    (key,) = {key for _, key, *_ in launches._spilled}
    with pytest.raises(BackendError, match="has not run"):  # in this tile
        made(kernel, Workspace(tiles={key: TILES[1]}))


def slow(*milliseconds):
    """Return a clock that runs the call and returns the milliseconds of its tile."""

    def seconds(call):
        call()
        return milliseconds[TILES.index(call.args[0])] / 1e3

    return seconds


@pytest.mark.parametrize(
    ("spills", "times", "nth"),
    [((0, 0, 0), (3, 2, 1), 2), ((0, 8, 0), (3, 1, 2), 2), ((0, 0, 0), (1, 1, 1), 0)],
)
def test_a_tuner_finds_the_fastest_tile_that_spills_nothing(spills, times, nth, monkeypatch):
    monkeypatch.setattr(launches, "_spilled", {})
    kernel, tuner = Kernel(*spills), Tuner(slow(*times), math.inf)
    with tuner.activate():
        made(kernel)
        made(kernel)  # twice: both launches count
    (timings,) = tuner.timings.values()
    assert [total for total, _ in timings] == [
        2 * t / 1e3 for t, spilt in zip(times, spills, strict=True) if not spilt
    ]
    tuned = Workspace(tiles=tuner.fastest)
    assert made(kernel, tuned)[1]["BLOCK_P"] == TILES[nth].sizes["BLOCK_P"]
    assert made(kernel, tuned)[1]["num_warps"] == TILES[nth].warps
    assert made(kernel)[1]["num_warps"] == TILES[0].warps  # elsewhere nothing has changed


def test_without_time_left_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(launches, "_spilled", {})
    kernel, tuner = Kernel(0, 0, 0), Tuner(lambda call: pytest.fail("timed"), -math.inf)
    with tuner.activate():
        made(kernel)
    assert not tuner.fastest
    assert len(kernel.compiled) == 1  # the one that is launched


def test_an_error_of_triton_becomes_a_backend_error_of_one_line(monkeypatch):
    monkeypatch.setattr(launches, "_spilled", {})
    errors = pytest.importorskip("triton.errors")

    class Refused(Kernel):
        def warmup(self, *arguments, **constants):
            raise errors.TritonError("no such\n  instruction")

    with pytest.raises(
        BackendError, match=r"^kernel does not run on this GPU \(TritonError: no such instruction\)$"
    ):
        made(Refused(0, 0, 0))


def test_a_tuned_tile_that_is_not_on_offer_is_ignored(monkeypatch):
    monkeypatch.setattr(launches, "_spilled", {})
    kernel, tuner = Kernel(0, 0, 0), Tuner(slow(3, 2, 1), math.inf)
    with tuner.activate():
        made(kernel)
    unknown = {compiled: Tile({"BLOCK_P": 32}, 2) for compiled in tuner.fastest}
    assert made(kernel, Workspace(tiles=unknown))[1]["BLOCK_P"] == 128


def test_a_recorded_launch_has_the_other_tiles_as_alternatives():
    with recording() as recorded:
        launch(
            Workspace(),
            Kernel(0, 0, 0),
            lambda sizes: (1024 // sizes["BLOCK_P"], 1, 1),
            1,
            2,
            ROWS=16,
            tiles=TILES,
        )
    (first,) = recorded
    assert [one.tile for one in (first, *first.alternatives)] == TILES
    assert [one.grid[0] for one in (first, *first.alternatives)] == [8, 8, 16]
    assert first.alternatives[1].arguments == {"x": 1, "y": 2, "ROWS": 16, "BLOCK_P": 64}


def test_amd_compilers_do_not_pipeline():
    assert [tile.options(amd=True)["num_stages"] for tile in TILES] == [1, 1, 1]


@pytest.mark.parametrize("dependent", [False, True])
def test_a_kernel_begins_before_the_last_one_ends_where_the_gpu_allows_it(dependent, monkeypatch):
    monkeypatch.setattr(launches, "_spilled", {})

    class Dependent(Kernel):
        arg_names = (*Kernel.arg_names, "PDL")

        def warmup(self, *arguments, PDL, launch_pdl=False, **more):
            assert PDL == launch_pdl == dependent
            return super().warmup(*arguments, **more)

    kernel = Dependent(0, 0, 0)
    _, constants = made(kernel, Workspace(dependent=dependent))
    assert (constants["PDL"], constants.get("launch_pdl", False)) == (dependent, dependent)
    assert "PDL" not in made(Kernel(0, 0, 0), Workspace(dependent=dependent))[1]
    with recording() as recorded:
        made_launch = launch(
            Workspace(dependent=dependent),
            kernel,
            lambda sizes: (1, 1, 1),
            *(torch.zeros(1), 3),
            ROWS=16,
            tiles=TILES,
        )
    assert made_launch is None
    assert recorded[0].options(amd=False).get("launch_pdl", False) == dependent
