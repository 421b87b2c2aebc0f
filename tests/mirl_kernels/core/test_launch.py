"""In which tile a Triton kernel is launched; the kernel is made up."""

import math

import pytest
import torch

from mirl_kernels.core import triton as core
from mirl_kernels.core.triton import Tile, Tuner, Workspace, launch, recording
from mirl_kernels.errors import BackendError

TILES = [Tile({"BLOCK_P": 128}, 4), Tile({"BLOCK_P": 128}, 8), Tile({"BLOCK_P": 64}, 4, pipelined=False)]


class Kernel:
    """Spills what it is told by pixels and warps."""

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
    """Knows what it spills once it is loaded."""

    def __init__(self, spills):
        self.spills = spills

    def _init_handles(self):
        self.n_spills = self.spills


def made(kernel):
    launch(kernel, lambda sizes: (1024 // sizes["BLOCK_P"], 1, 1), torch.zeros(1), 3, ROWS=16, tiles=TILES)
    return kernel.launched[-1]


@pytest.mark.parametrize(("spills", "nth"), [((0, 0, 0), 0), ((8, 0, 0), 1), ((8, 4, 0), 2), ((8, 4, 6), 1)])
def test_the_first_tile_that_spills_nothing_or_least(spills, nth, monkeypatch):
    monkeypatch.setattr(core, "_spilled", {})
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


def test_each_launch_takes_its_own_first_tile_of_those_that_spill_nothing(monkeypatch):
    monkeypatch.setattr(core, "_spilled", {})
    kernel = Kernel(0, 8, 0)
    for order, nth in ((TILES, 0), (TILES[::-1], 2), (TILES[1:], 2)):
        launch(kernel, lambda sizes: (1, 1, 1), torch.zeros(1), 3, ROWS=16, tiles=order)
        assert kernel.launched[-1][1]["BLOCK_P"] == TILES[nth].sizes["BLOCK_P"]
    assert len(kernel.compiled) == len(set(kernel.compiled))


def slow(*milliseconds):
    """A clock that says of each tile what it is told, and runs the call."""

    def seconds(call):
        call()
        return milliseconds[TILES.index(call.args[0])] / 1e3

    return seconds


@pytest.mark.parametrize(
    ("spills", "times", "nth"),
    [((0, 0, 0), (3, 2, 1), 2), ((0, 8, 0), (3, 1, 2), 2), ((0, 0, 0), (1, 1, 1), 0)],
)
def test_a_tuner_finds_the_fastest_tile_that_spills_nothing(spills, times, nth, monkeypatch):
    monkeypatch.setattr(core, "_spilled", {})
    kernel, tuner = Kernel(*spills), Tuner(slow(*times), math.inf)
    with tuner.at_work():
        made(kernel)
        made(kernel)  # twice: both launches count
    (taken,) = tuner.taken.values()
    assert [spent for spent, _ in taken] == [
        2 * t / 1e3 for t, spilt in zip(times, spills, strict=True) if not spilt
    ]
    with Workspace(tiles=tuner.fastest).used():
        assert made(kernel)[1]["BLOCK_P"] == TILES[nth].sizes["BLOCK_P"]
        assert made(kernel)[1]["num_warps"] == TILES[nth].warps
    assert made(kernel)[1]["num_warps"] == TILES[0].warps  # elsewhere nothing has changed


def test_without_time_left_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(core, "_spilled", {})
    kernel, tuner = Kernel(0, 0, 0), Tuner(lambda call: pytest.fail("timed"), -math.inf)
    with tuner.at_work():
        made(kernel)
    assert not tuner.fastest
    assert len(kernel.compiled) == 1  # the one that is launched


def test_what_triton_refuses_is_one_line(monkeypatch):
    monkeypatch.setattr(core, "_spilled", {})
    errors = pytest.importorskip("triton.errors")

    class Refused(Kernel):
        def warmup(self, *arguments, **constants):
            raise errors.TritonError("no such\n  instruction")

    with pytest.raises(
        BackendError, match=r"^kernel does not run on this GPU \(TritonError: no such instruction\)$"
    ):
        made(Refused(0, 0, 0))


def test_a_tile_of_another_version_is_not_used(monkeypatch):
    monkeypatch.setattr(core, "_spilled", {})
    kernel, tuner = Kernel(0, 0, 0), Tuner(slow(3, 2, 1), math.inf)
    with tuner.at_work():
        made(kernel)
    unknown = {compiled: Tile({"BLOCK_P": 32}, 2) for compiled in tuner.fastest}
    with Workspace(tiles=unknown).used():
        assert made(kernel)[1]["BLOCK_P"] == 128


def test_what_is_recorded_has_the_other_tiles():
    with recording() as launches:
        launch(Kernel(0, 0, 0), lambda sizes: (1024 // sizes["BLOCK_P"], 1, 1), 1, 2, ROWS=16, tiles=TILES)
    (first,) = launches
    assert [one.tile for one in (first, *first.others)] == TILES
    assert [one.grid[0] for one in (first, *first.others)] == [8, 8, 16]
    assert first.others[1].arguments == {"x": 1, "y": 2, "ROWS": 16, "BLOCK_P": 64}


def test_amd_compilers_do_not_pipeline():
    assert [tile.options(amd=True)["num_stages"] for tile in TILES] == [1, 1, 1]
