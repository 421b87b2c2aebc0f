"""MDTA, the transposed attention block, with its layer norm and residual."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.ops.gdfn import live_after_taps
from mirl_kernels.ops.mdta.reference import mdta as reference

__all__ = ["PackedMDTA", "live_channels", "reference"]


class Args(Structure):
    _fields_ = [("x", cpu.Image), ("y", cpu.Image), ("size", cpu.Size), ("qkv", c_void_p), ("dwconv", c_void_p),
                ("project_out", c_void_p), ("temperature", c_void_p), ("centred", c_int64), ("gain", c_void_p), ("offset", c_void_p),
                ("heads", c_int64), ("q_count", c_int64), ("k_count", c_int64), ("v_count", c_int64), ("q_index", c_void_p),
                ("k_index", c_void_p), ("v_index", c_void_p), ("scratch", c_void_p), ("sums", c_void_p),
                ("threads", c_int64)]  # fmt: skip


def live_channels(qkv: Tensor, dwconv: Tensor, project_out: Tensor, heads: int,
                  biases: Sequence[Tensor | None] = (None, None, None)) -> list[Tensor]:  # fmt: skip
    """The channels of q, of k and of v that must be computed, each sorted.

    A v channel that is zero everywhere is dropped. A q or k channel that is zero has
    logits of 0, which still count in the softmax, so it is only its computation that is dropped. Where
    no output reads a row of the attention, its q is dropped; where none reads a head, or all its v are
    zero, all of the head; and where all q or all k of a head are zero, so are all its logits.
    """
    q, k, v = live_after_taps(qkv, dwconv, biases[0], biases[1]).view(3, heads, -1)
    read = (project_out.flatten(1) != 0).any(0).view(heads, -1)
    v = v & read.any(1, keepdim=True)
    q = q & read & v.any(1, keepdim=True)
    k = k & q.any(1, keepdim=True)
    q = q & k.any(1, keepdim=True)
    return [live.flatten().nonzero()[:, 0] for live in (q, k, v)]


def ordered_channels(qkv: Tensor, dwconv: Tensor, project_out: Tensor, heads: int,
                     biases: Sequence[Tensor | None] = (None, None, None)) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """`live_channels` in the order that suits the kernel, head by head, and the rows of qkv that they are."""
    live, channels = live_channels(qkv, dwconv, project_out, heads, biases), len(project_out)
    counts = dwconv.count_nonzero(1).view(3, -1)
    for i, index in enumerate(live):  # loops of equal length side by side: the processor foresees their ends
        live[i] = index[(index * heads // channels * 1000 + counts[i, index]).argsort(stable=True)]
    return live, torch.cat([index + i * channels for i, index in enumerate(live)])


def arguments(x: Tensor, out: Tensor, qkv: Tensor, dwconv: Tensor, project_out: Tensor, temperature: Tensor,
              live: Sequence[Tensor], centred: bool, scratch: Tensor | None, gain: Tensor | None = None,
              offset: Tensor | None = None, sums: Tensor | None = None, flat: bool = False) -> Args:  # fmt: skip
    """``out`` = MDTA(x) by packed matrices; ``live`` are the channels of q, k and v that qkv's rows compute; ``gain`` and
    ``offset`` of the norm, where they are not part of qkv; ``sums`` takes what training keeps; ``flat`` as in `cpu.size`."""
    given = (None if t is None else t.data_ptr() for t in (gain, offset))
    kept = (None if t is None else t.data_ptr() for t in (scratch, sums))
    return Args(cpu.image(x), cpu.image(out), cpu.size(x, flat), *map(cpu.address, (qkv, dwconv, project_out)),
                cpu.floats(temperature), centred, *given, temperature.numel(), *map(len, live), *map(cpu.address, live),
                *kept)  # fmt: skip


def scratch_for(x: Tensor, live: Sequence[Tensor]) -> Tensor:
    """The scratch memory of a call on x."""
    return x.new_empty(x.shape[0] * x.shape[2] * cpu.padded(x.shape[3]) * len(live[2]))


@torch.library.custom_op("mirl::mdta", mutates_args=())
def op(x: Tensor, qkv: Tensor, dwconv: Tensor, project_out: Tensor, temperature: Tensor, live: Sequence[Tensor],
       centred: bool) -> Tensor:  # fmt: skip
    """MDTA by packed matrices: x (B, C, H, W) to the same shape; ``centred``: the norm subtracts the mean."""
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape)
    cpu.check(x, int(qkv[1]), out, x.shape)
    cpu.expect(project_out, x.shape[1], x.shape[1])
    scratch = scratch_for(x, live)
    cpu.Call("mdta", arguments(x, out, qkv, dwconv, project_out, temperature, live, centred, scratch))()
    return out


@op.register_fake
def _(x: Tensor, qkv: Tensor, dwconv: Tensor, project_out: Tensor, temperature: Tensor, live: Sequence[Tensor],
      centred: bool) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


class PackedMDTA(cpu.Packed):
    """The surviving weights of one MDTA, dead channels removed exactly; arguments as in `reference`. Weights that do not
    belong together are refused, by a ValueError or by PyTorch."""

    qkv: Tensor
    dwconv: Tensor
    project_out: Tensor
    temperature: Tensor
    q_index: Tensor
    k_index: Tensor
    v_index: Tensor

    def __init__(self, norm_weight: Tensor, norm_bias: Tensor | None, qkv: Tensor, dwconv: Tensor, temperature: Tensor,
                 project_out: Tensor, biases: Sequence[Tensor | None] = (None, None, None)) -> None:  # fmt: skip
        super().__init__()
        self.channels, self.heads, self.centred = qkv.shape[1], temperature.numel(), norm_bias is not None
        fan_in, taps, out = (w.detach().flatten(1) for w in (qkv, dwconv, project_out))
        live, rows = ordered_channels(fan_in, taps, out, self.heads, biases)
        packed_in, packed_taps = cpu.pack_normalised(
            fan_in, taps, norm_weight, norm_bias, biases[0], biases[1], rows
        )
        self.register_buffer("qkv", packed_in)
        self.register_buffer("dwconv", packed_taps)
        self.register_buffer("project_out", cpu.pack(out, biases[2]))
        self.register_buffer("temperature", temperature.detach().flatten().float().clone())
        for name, index in zip("qkv", live, strict=True):
            self.register_buffer(f"{name}_index", index.int().contiguous())
        self._expect_fit(qkv=qkv, dwconv=dwconv, temperature=temperature, project_out=project_out)

    def _fits(self) -> bool:
        (hidden, channels), taps, out = map(cpu.header, (self.qkv, self.dwconv, self.project_out))
        counted = hidden == sum(map(len, self.live)) and taps == (hidden, 9)
        inside = all(bool(((index >= 0) & (index < self.channels)).all()) for index in self.live)
        return counted and inside and channels == self.channels and out == (channels, channels)

    @property
    def live(self) -> list[Tensor]:
        """The channels of q, of k and of v that are computed, in the order that suits the kernel."""
        return [self.q_index, self.k_index, self.v_index]

    def packed(self) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], bool]:
        """As `arguments` takes it."""
        return self.qkv, self.dwconv, self.project_out, self.temperature, self.live, self.centred

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        """How many floats of scratch memory a call on (B, C, H, W) takes: its live v channels, row by row."""
        return len(self.v_index) * batch * height * cpu.padded(width)

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """What a call on (B, C, H, W) must do. The attention is applied head by head and then projected, or as
        one composed matrix, whichever is less; v is written and read between the passes over x."""
        pixels, kept = batch * height * width, cpu.kept(self.qkv) + cpu.kept(self.dwconv)
        q, k, v = (torch.bincount(i * self.heads // self.channels, minlength=self.heads) for i in self.live)
        projected = self.channels // self.heads * int(v.sum()) + cpu.kept(self.project_out)
        macs = kept + int((q * k).sum()) + int((q + k).sum()) + min(projected, self.channels * int(v.sum()))
        return cpu.Work(macs * pixels, (12 * self.channels + 8 * int(v.sum())) * pixels + 8 * kept)

    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        vectors, groups = cpu.groups(batch * height, width)
        found = cpu.product_quantities(self.qkv, vectors, groups)
        q, k, v = (torch.bincount(i * self.heads // self.channels, minlength=self.heads) for i in self.live)
        kept, values = cpu.kept(self.project_out), int(v.sum())
        by_head = self.channels // self.heads * values
        after = self.channels**2 if cpu.whole(self.project_out) else 2 * kept
        if (
            self.channels * values + kept * values // self.heads // (height * width) <= by_head + after
        ):  # as the kernel decides
            found["dense"] += self.channels * values * vectors
        else:
            found["dense"] += by_head * vectors
            found += cpu.product_quantities(self.project_out, vectors, groups)
        return found + Counter({
            "norm": self.channels * vectors, "tap": cpu.kept(self.dwconv) * vectors,
            "gram": int((q * cpu.turned(k)).sum()) * vectors, "live qk": int((q + k).sum()) * vectors,
            "live v": int(v.sum()) * vectors, "softmax": batch * self.channels**2 // self.heads,
        })  # fmt: skip

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """What computes ``out`` = MDTA(x), both (B, C, H, W), possibly the same; ``scratch`` holds `scratch_floats`."""
        cpu.check(x, self.channels, out, x.shape, scratch, self.scratch_floats(x.shape[0], *x.shape[2:]))
        return cpu.Call("mdta", arguments(x, out, *self.packed(), scratch), x, out, scratch, *self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        return op(x, *self.packed())
