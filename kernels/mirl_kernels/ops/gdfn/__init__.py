"""GDFN, the gated depthwise feed-forward block, with its layer norm and residual."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.ops.gdfn.reference import gdfn as reference

__all__ = ["PackedGDFN", "live_pairs", "reference"]


class Args(Structure):
    _fields_ = [("x", cpu.Image), ("y", cpu.Image), ("size", cpu.Size), ("project_in", c_void_p),
                ("dwconv", c_void_p), ("project_out", c_void_p), ("centred", c_int64), ("gain", c_void_p),
                ("offset", c_void_p), ("threads", c_int64)]  # fmt: skip


def live_pairs(project_in: Tensor, dwconv: Tensor, project_out: Tensor,
               biases: Sequence[Tensor | None] = (None, None, None)) -> Tensor:  # fmt: skip
    """The pairs of hidden channels that reach the output, sorted.

    A pair is dead when either half is zero (GELU(0) = 0), or when no output reads it.
    """
    pairs = project_out.shape[1]
    alive = live_after_taps(project_in, dwconv, biases[0], biases[1])
    return (alive[:pairs] & alive[pairs:] & (project_out.flatten(1) != 0).any(0)).nonzero()[:, 0]


def ordered_pairs(project_in: Tensor, dwconv: Tensor, project_out: Tensor,
                  biases: Sequence[Tensor | None] = (None, None, None)) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`live_pairs` in the order that suits the kernel, and the rows of the hidden channels that they are."""
    live, pairs = live_pairs(project_in, dwconv, project_out, biases), project_out.shape[1]
    counts = dwconv.count_nonzero(1)  # loops of equal length side by side: the processor foresees their ends
    live = live[(counts[live] * 1000 + counts[live + pairs]).argsort(stable=True)]
    return live, torch.cat([live, live + pairs])


def live_after_taps(
    pointwise: Tensor, dwconv: Tensor, bias: Tensor | None, tap_bias: Tensor | None
) -> Tensor:
    """Which channels of a 1x1 and a depthwise convolution are not zero everywhere, (channels,) bool."""
    fed, tapped = (pointwise.flatten(1) != 0).any(1), (dwconv.flatten(1) != 0).any(1)
    fed = fed if bias is None else fed | (bias != 0)
    return fed & tapped if tap_bias is None else fed & tapped | (tap_bias != 0)


def arguments(x: Tensor, out: Tensor, project_in: Tensor, dwconv: Tensor, project_out: Tensor, centred: bool,
              gain: Tensor | None = None, offset: Tensor | None = None, flat: bool = False) -> Args:  # fmt: skip
    """``out`` = GDFN(x) by packed matrices; ``gain`` and ``offset`` of the norm, where they are not part of project_in;
    ``flat`` as in `cpu.size`."""
    return Args(cpu.image(x), cpu.image(out), cpu.size(x, flat), *map(cpu.address, (project_in, dwconv, project_out)), centred,
                *(None if t is None else t.data_ptr() for t in (gain, offset)))  # fmt: skip


@torch.library.custom_op("mirl::gdfn", mutates_args=())
def op(x: Tensor, project_in: Tensor, dwconv: Tensor, project_out: Tensor, centred: bool) -> Tensor:
    """GDFN by packed matrices: x (B, C, H, W) to the same shape; ``centred``: the norm subtracts the mean."""
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape)
    cpu.check(x, int(project_in[1]), out, x.shape)
    cpu.expect(project_out, x.shape[1])
    cpu.Call("gdfn", arguments(x, out, project_in, dwconv, project_out, centred))()
    return out


@op.register_fake
def _(x: Tensor, project_in: Tensor, dwconv: Tensor, project_out: Tensor, centred: bool) -> Tensor:
    return x.new_empty(x.shape)


class PackedGDFN(cpu.Packed):
    """The surviving weights of one GDFN, dead pairs removed exactly; arguments as in `reference`. Weights that do not
    belong together are refused, by a ValueError or by PyTorch.

    The norm's gain and bias are folded into the 1x1 layer, which is exact before the zero padding.
    """

    project_in: Tensor
    dwconv: Tensor
    project_out: Tensor

    def __init__(self, norm_weight: Tensor, norm_bias: Tensor | None, project_in: Tensor, dwconv: Tensor,
                 project_out: Tensor, biases: Sequence[Tensor | None] = (None, None, None)) -> None:  # fmt: skip
        super().__init__()
        fan_in, taps, out = (w.detach().flatten(1) for w in (project_in, dwconv, project_out))
        live, rows = ordered_pairs(fan_in, taps, out, biases)
        self.channels, self.centred = project_in.shape[1], norm_bias is not None
        packed_in, packed_taps = cpu.pack_normalised(
            fan_in, taps, norm_weight, norm_bias, biases[0], biases[1], rows
        )
        self.register_buffer("project_in", packed_in)
        self.register_buffer("dwconv", packed_taps)
        self.register_buffer("project_out", cpu.pack(out[:, live], biases[2]))
        self._expect_fit(project_in=project_in, dwconv=dwconv, project_out=project_out)

    def _fits(self) -> bool:
        (hidden, channels), taps, out = map(cpu.header, (self.project_in, self.dwconv, self.project_out))
        return channels == self.channels and taps == (hidden, 9) and out == (channels, hidden // 2)

    def packed(self) -> tuple[Tensor, Tensor, Tensor, bool]:
        """As `arguments` takes it."""
        return self.project_in, self.dwconv, self.project_out, self.centred

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        pixels = batch * height * width
        kept = sum(map(cpu.kept, (self.project_in, self.dwconv, self.project_out)))
        return cpu.Work(kept * pixels, 8 * self.channels * pixels + 8 * kept)

    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        vectors, groups = cpu.groups(batch * height, width)
        found = cpu.product_quantities(self.project_in, vectors, groups)
        found += cpu.product_quantities(self.project_out, vectors, groups)
        return found + Counter({"norm": self.channels * vectors, "gate": cpu.header(self.project_out)[1] * vectors,
                                "tap": cpu.kept(self.dwconv) * vectors})  # fmt: skip

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """What computes ``out`` = GDFN(x), both (B, C, H, W); they may not share memory."""
        cpu.check(x, self.channels, out, x.shape)
        return cpu.Call("gdfn", arguments(x, out, *self.packed()), x, out, *self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        return op(x, *self.packed())
