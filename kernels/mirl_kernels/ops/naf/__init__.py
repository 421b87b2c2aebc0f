"""NAFNet's block, both halves, as one op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ctypes import Structure, c_double, c_int64, c_void_p

import torch
from torch import Tensor

from mirl_kernels.core import cpu
from mirl_kernels.ops.gdfn import live_after_taps
from mirl_kernels.ops.naf.reference import naf as reference

__all__ = ["PackedNAF", "reference"]


class _Args(Structure):
    _fields_ = [("x", cpu.Image), ("y", cpu.Image), ("size", cpu.Size), ("conv1", c_void_p), ("conv2", c_void_p),
                ("sca", c_void_p), ("conv3", c_void_p), ("conv4", c_void_p), ("conv5", c_void_p), ("eps1", c_double),
                ("eps2", c_double), ("scratch", c_void_p), ("threads", c_int64)]  # fmt: skip


def prepare(
    x: Tensor, out: Tensor, matrices: Sequence[Tensor], eps: Sequence[float], scratch: Tensor | None
) -> cpu.Call:
    """What computes ``out`` from x by packed matrices (conv1, conv2, sca, conv3, conv4, conv5)."""
    args = _Args(cpu.image(x), cpu.image(out), cpu.size(x), *map(cpu.address, matrices), *eps,
                 0 if scratch is None else scratch.data_ptr())  # fmt: skip
    return cpu.Call("naf", args, x, out, scratch, *matrices)


@torch.library.custom_op("mirl::naf", mutates_args=())
def op(x: Tensor, matrices: Sequence[Tensor], eps: Sequence[float]) -> Tensor:
    """NAFNet's block by packed matrices: x (B, C, H, W) to the same shape."""
    x = cpu.with_rows(x)
    out = x.new_empty(x.shape)
    cpu.check(x, int(matrices[0][1]), out, x.shape)
    for stored in (matrices[3], matrices[5]):
        cpu.expect(stored, x.shape[1])
    scratch = x.new_empty(x.shape[0] * x.shape[2] * cpu.padded(x.shape[3]) * int(matrices[3][1]))
    prepare(x, out, matrices, eps, scratch)()
    return out


@op.register_fake
def _(x: Tensor, matrices: Sequence[Tensor], eps: Sequence[float]) -> Tensor:
    return x.new_empty(x.shape)


class PackedNAF(cpu.Packed):
    """The surviving weights of one block, dead pairs removed exactly; arguments as in `reference`.

    Gains and biases of the norms are folded into conv1 and conv4, beta and gamma into conv3 and conv5.
    """

    conv1: Tensor
    conv2: Tensor
    sca: Tensor
    conv3: Tensor
    conv4: Tensor
    conv5: Tensor

    def __init__(self, norms: Sequence[tuple[Tensor, Tensor, float]], weights: Sequence[Tensor],
                 biases: Sequence[Tensor | None], beta: Tensor, gamma: Tensor) -> None:  # fmt: skip
        super().__init__()
        conv1, conv2, sca, conv3, conv4, conv5 = (w.detach().flatten(1) for w in weights)
        bias1, bias2, sca_bias, bias3, bias4, bias5 = biases
        (gain1, offset1, eps1), (gain2, offset2, eps2) = norms
        self.channels, self.eps = conv1.shape[1], (eps1, eps2)
        conv3, conv5 = conv3 * beta[:, None], conv5 * gamma[:, None]

        # A pair is dead when either half is zero. Those that conv3 reads, scaled by something, are stored; the
        # means of others may still count in the scale of those.
        pairs = conv3.shape[1]
        fed = live_after_taps(conv1, conv2, bias1, bias2)
        alive = fed[:pairs] & fed[pairs:]
        scaled = (sca != 0).any(1) if sca_bias is None else (sca != 0).any(1) | (sca_bias != 0)
        stored = alive & scaled & (conv3 != 0).any(0)
        averaged = alive & (sca[stored] != 0).any(0) & ~stored
        counts = conv2.count_nonzero(
            1
        )  # loops of equal length side by side: the processor foresees their ends
        order = (counts[:pairs] * 1000 + counts[pairs:]).argsort(stable=True)
        kept = order[stored[order]]
        live = torch.cat([kept, order[averaged[order]]])
        rows = torch.cat([live, live + pairs])
        packed1, packed2 = cpu.pack_normalised(conv1, conv2, gain1, offset1, bias1, bias2, rows)
        self.register_buffer("conv1", packed1)
        self.register_buffer("conv2", packed2)
        self.register_buffer(
            "sca", cpu.pack(sca[kept][:, live], None if sca_bias is None else sca_bias[kept])
        )
        self.register_buffer("conv3", cpu.pack(conv3[:, kept], None if bias3 is None else bias3 * beta))

        pairs = conv5.shape[1]
        fed = (conv4 != 0).any(1) if bias4 is None else (conv4 != 0).any(1) | (bias4 != 0)
        live = (fed[:pairs] & fed[pairs:] & (conv5 != 0).any(0)).nonzero()[:, 0]
        rows = torch.stack([live, live + pairs], 1).flatten()
        offset = conv4 @ offset2 if bias4 is None else conv4 @ offset2 + bias4
        self.register_buffer("conv4", cpu.pack(conv4[rows] * gain2, offset[rows]))
        self.register_buffer("conv5", cpu.pack(conv5[:, live], None if bias5 is None else bias5 * gamma))
        self._expect_fit(conv1=conv1, conv2=conv2, sca=sca, conv3=conv3, conv4=conv4, conv5=conv5)

    def _matrices(self) -> list[Tensor]:
        return [self.conv1, self.conv2, self.sca, self.conv3, self.conv4, self.conv5]

    def _fits(self) -> bool:
        (hidden, channels), taps, sca, conv3, (wide, inner), conv5 = map(cpu.header, self._matrices())
        first = channels == self.channels and taps == (hidden, 9) and sca == (conv3[1], hidden // 2)
        return first and inner == channels and conv3[0] == channels and conv5 == (channels, wide // 2)

    def scratch_floats(self, batch: int, height: int, width: int) -> int:
        """How many floats of scratch memory a call on (B, C, H, W) takes: what conv3 reads, row by row."""
        return cpu.header(self.conv3)[1] * batch * height * cpu.padded(width)

    def work(self, batch: int, height: int, width: int) -> cpu.Work:
        """What a call on (B, C, H, W) must do; what conv3 reads is written and read between the passes over x."""
        pixels = batch * height * width
        kept = sum(map(cpu.kept, self._matrices())) - cpu.kept(self.sca)
        return cpu.Work(
            kept * pixels, (12 * self.channels + 8 * cpu.header(self.conv3)[1]) * pixels + 8 * kept
        )

    def _quantities(self, batch: int, height: int, width: int) -> Counter[str]:
        vectors, groups = cpu.groups(batch * height, width)
        found = Counter({"norm": 2 * self.channels * vectors, "tap": cpu.kept(self.conv2) * vectors,
                         "live v": cpu.header(self.conv2)[0] // 2 * vectors})  # fmt: skip
        for matrix in (self.conv1, self.conv3, self.conv4, self.conv5):
            found += cpu.product_quantities(matrix, vectors, groups)
        return found

    def bind(self, x: Tensor, out: Tensor, scratch: Tensor | None = None) -> cpu.Call:
        """What computes ``out`` from x, both (B, C, H, W), possibly the same; ``scratch`` holds `scratch_floats`."""
        cpu.check(x, self.channels, out, x.shape, scratch, self.scratch_floats(x.shape[0], *x.shape[2:]))
        return prepare(x, out, self._matrices(), self.eps, scratch)

    def forward(self, x: Tensor) -> Tensor:
        return op(x, self._matrices(), self.eps)
