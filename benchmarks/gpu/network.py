"""Check and time the whole network on the GPU, sparse beside dense."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.gpu import kernels
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.setting import Setting
from mirl_sparse.performance import gpu_bench
from mirl_sparse.performance.gpu_bench import DENSE, SPARSE, EventTurns
from mirl_sparse.performance.oracle import expected
from mirl_sparse.performance.peers import Kind, Peer
from mirl_sparse.runtime.restorer import SparseRestorer

_ROUNDS = 9
_REPLAYS = 20


def _compiled_quickly(network: nn.Module, image: Tensor) -> Callable[[], Tensor]:
    """Return a call of the dense network in float16, compiled without a search but with CUDA graphs."""
    compiled = torch.compile(deepcopy(network).half(), mode="reduce-overhead", dynamic=False)
    half = image.half()
    return lambda: compiled(half).float()


QUICK = "dense compiled with graphs"
_PEERS = DENSE | {QUICK: Peer(_compiled_quickly, Kind.COMPILED)}


def correctness(setting: Setting) -> Iterator[Figure]:
    """Yield how far the network is from float64, and whether graphs, streams and memory behave."""
    image, other = setting.image(side=256), setting.image(side=128)
    network = setting.network.to(setting.device)
    right = expected(network, image)
    for precision in ("float16", "bfloat16", "float32")[:: 2 if setting.rehearsal else 1]:
        restorer = SparseRestorer(network, "triton", precision=precision)
        difference = _difference(restorer(image), right)
        yield Figure(f"difference from float64, {precision}", difference, "", {"tolerated": 2e-2})
    restorer = SparseRestorer(network, "triton")
    first = {
        each.shape: restorer(each) for each in (image, other)
    }  # the second run of a size records a graph
    turns = [image, other] * setting.rounds(_REPLAYS // 2)
    equal = all(torch.equal(restorer(each), first[each.shape]) for each in turns)
    yield Figure(f"the same bits in {len(turns)} replays of two sizes in turn", "yes" if equal else "no")
    yield Figure("the same bits on another stream", _on_another_stream(setting, restorer, image, first))
    yield Figure("the same bits in a caller's graph", _in_a_callers_graph(setting, restorer, image, first))
    if not setting.rehearsal:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(_REPLAYS):
            restorer(image)
        yield Figure("memory at most", torch.cuda.max_memory_allocated() / 1e6, "MB")
        yield Figure(
            "memory that 20 images leave behind", (torch.cuda.memory_allocated() - before) / 1e6, "MB"
        )


def _difference(result: Tensor, right: Tensor) -> float:
    """Return the largest difference, relative to the largest value where that is above 1."""
    return float((result.double() - right).abs().max() / right.abs().max().clamp(min=1))


def _on_another_stream(
    setting: Setting, restorer: SparseRestorer, image: Tensor, first: dict[torch.Size, Tensor]
) -> str:
    if setting.rehearsal:
        return "not rehearsed"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = [restorer(image) for _ in range(3)]  # as it is, recorded, replayed
    stream.synchronize()
    return "yes" if all(torch.equal(result, first[image.shape]) for result in results) else "no"


def _in_a_callers_graph(
    setting: Setting, restorer: SparseRestorer, image: Tensor, first: dict[torch.Size, Tensor]
) -> str:
    if setting.rehearsal:
        return "not rehearsed"
    graph, x = torch.cuda.CUDAGraph(), image.clone()
    with torch.cuda.graph(graph):
        result = restorer(x)
    graph.replay()
    torch.cuda.synchronize()
    return "yes" if torch.equal(result, first[image.shape]) else "no"


def _compared(setting: Setting, image: Tensor, dense: list[str], rounds: int) -> Iterator[Figure]:
    """Yield the times of the sparse network and of dense ones in turns, after each has proved right."""
    network, turns = setting.network.to(setting.device), EventTurns(setting.device)
    right = expected(network, image)
    sparse: Callable[[], Callable[[], Tensor]] = partial(partial, SparseRestorer(network, "triton"), image)
    turns.admit(SPARSE, sparse, right, gpu_bench.TOLERANCE)
    for name in dense:
        try:
            turns.admit(name, partial(_PEERS[name], network, image), right, gpu_bench.TOLERANCE)
        except (
            Exception
        ) as error:  # PyTorch's compiler raises nearly anything; the others are timed all the same
            turns.left_out[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    timed = [name for name in dense if name in turns.times]
    for name, reason in turns.left_out.items():
        yield Figure(name, None, "s", {"left_out": reason})
    if SPARSE not in turns.times or not timed:
        return
    for _ in range(setting.rounds(rounds)):
        turns.round()
    result = turns.compared(timed)
    for name, row in result.rows.items():
        facts = {key: value for key, value in row.to_dict().items() if key not in ("median", "times")}
        yield Figure(name, row.median, "s", facts | {"shape": list(image.shape)})


def _of_kind(*kinds: Kind) -> list[str]:
    return [name for name, peer in DENSE.items() if peer.kind in kinds]


def headline(setting: Setting) -> Iterator[Figure]:
    """Yield the times at 256x256: first without PyTorch's compiler, which may not end in time."""
    image = setting.image()
    yield from _compared(setting, image, _of_kind(Kind.EAGER), _ROUNDS)
    if not setting.rehearsal:
        yield from _compared(setting, image, [*_of_kind(Kind.EAGER)[1:], QUICK], _ROUNDS)


def sizes(setting: Setting) -> Iterator[Figure]:
    """Yield the times of a large image, of eight images, and of each launch for the large one."""
    for image in (setting.image(1, 1024), setting.image(8, 256)):
        yield from _compared(setting, image, _of_kind(Kind.EAGER)[1:], 5)
    yield from kernels.large(setting)


def strongest(setting: Setting) -> Iterator[Figure]:
    """Yield the times of the dense networks that PyTorch takes longest to compile, one by one."""
    if setting.rehearsal:
        yield Figure("dense compiled", None, "s", {"left_out": "not rehearsed"})
        return
    for name in _of_kind(Kind.COMPILED):
        began = time.perf_counter()
        yield from _compared(setting, setting.image(), [name], _ROUNDS)
        yield Figure(f"{name}, compilation and all", time.perf_counter() - began, "s")
