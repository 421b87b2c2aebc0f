"""What the ops share in training: weights whose values change every step, and whose zeros do not."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from mirl_kernels import _cpu

_own = threading.local()


def workspace(floats: int) -> Tensor:
    """So many floats of memory that this thread keeps from one call to the next."""
    kept = getattr(_own, "memory", None)
    if kept is None or len(kept) < floats:
        kept = _own.memory = torch.empty(floats)
    return kept[:floats]


class Entries:
    """The surviving entries of a weight, numbered in its order; ``alive`` is bool, in the weight's shape."""

    def __init__(self, alive: Tensor) -> None:
        self.alive, self.count = alive, int(alive.sum())
        numbers = torch.zeros(alive.shape)  # exact in float32: no layer has 2^24 weights
        numbers[alive] = torch.arange(1.0, self.count + 1)
        self.numbers = numbers.flatten(1)  # a matrix of each entry's number from 1, 0 for none
        self.rows, self.columns = alive.flatten(1).nonzero(as_tuple=True)
        self._index = self.rows * self.numbers.shape[1] + self.columns

    def values(self, weight: Tensor) -> Tensor:
        """The entries' values, (count,)."""
        return weight.flatten()[self._index]

    def spread(self, gradient: Tensor) -> Tensor:
        """The weight's gradient from that of its entries: zero for all others."""
        return gradient.new_zeros(self.alive.numel()).index_copy_(0, self._index, gradient).view(self.alive.shape)


class Pattern:
    """A packed matrix whose values come and go: ``numbered`` is one of `Entries.numbers`, packed, or of some of them anywhere."""

    def __init__(self, entries: Entries, numbered: Tensor) -> None:
        self._count, self._words, self.gradient_floats = entries.count, numbered, 0
        floats = numbered.view(torch.float32)
        slots, wholes, places = [], [], []
        for _, rows, columns, start, entry, self._bias, dense in (
            numbered[5 : 5 + 7 * int(numbered[3])].view(-1, 7).tolist()
        ):
            slots.append(entry + 1 + 2 * torch.arange(int(numbered[start + rows])))
            place = torch.arange(len(slots[-1]))
            if dense:  # it is there once more, and the kernels write its gradient, whole
                row, column = torch.arange(rows)[:, None], torch.arange(columns)
                whole = dense + (row // 4 * columns + column) * 4 + row % 4
                kept = floats[whole] > 0
                wholes.append(whole[kept])
                place = (row * columns + column)[kept]
            places.append(self.gradient_floats + place)
            self.gradient_floats += rows * columns if dense else len(place)
        self._places, entries_slots = torch.cat(places), torch.cat(slots)
        self._slots = torch.cat([entries_slots, *wholes])
        self._order, self._gradient_order = (floats[at].long() - 1 for at in (self._slots, entries_slots))

    def pack(self, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """The packed matrix with these values of all entries, and these offsets of its rows where it has any."""
        words = self._words.clone()
        floats = words.view(torch.float32)
        floats[self._slots] = values[self._order]
        if bias is not None:
            floats[self._bias : self._bias + len(bias)] = bias
        return words

    def gradient(self, written: Tensor) -> Tensor:
        """That of every entry, from what a kernel wrote; zero for those that are not in the matrix."""
        gradient = written.new_zeros(self._count)
        gradient[self._gradient_order] = written[self._places]
        return gradient

    def entry_gradient(self, written: Tensor) -> Tensor:
        """The same where the kernel writes one float per entry, in the matrix's order."""
        gradient = written.new_zeros(self._count)
        gradient[self._gradient_order] = written
        return gradient


class Beginning:
    """Layer norm, 1x1 convolution and taps, with which MDTA and GDFN begin: ``rows`` of them."""

    def __init__(self, pointwise: Tensor, taps: Tensor, rows: Tensor) -> None:
        self._rows, self._pointwise, self._taps = rows, Entries(pointwise), Entries(taps)
        numbers, tap_numbers = self._pointwise.numbers[rows], self._taps.numbers[rows]
        self._forward = Pattern(self._pointwise, _cpu.pack(numbers, torch.zeros(len(rows))))
        self._back = Pattern(self._pointwise, _cpu.pack(numbers.T))
        self._tapped, self._flipped = (Pattern(self._taps, _cpu.pack(n)) for n in (tap_numbers, tap_numbers.flip(1)))
        self.gradient_lengths = [int(tap_numbers.count_nonzero()), self._forward.gradient_floats, len(rows)]

    def pack(self, gain: Tensor, offset: Tensor, pointwise: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
        """The packed 1x1 layer, the norm's gain and bias folded in, and taps."""
        p, values = self._pointwise, self._pointwise.values(pointwise)
        bias = values.new_zeros(len(p.alive)).index_add_(0, p.rows, values * offset[p.columns])
        packed = self._forward.pack(values * gain[p.columns], bias[self._rows])
        return packed, self._tapped.pack(self._taps.values(taps))

    def pack_back(self, gain: Tensor, pointwise: Tensor, taps: Tensor) -> list[Tensor]:
        """What takes gradients back: the 1x1 layer transposed, the taps flipped."""
        p = self._pointwise
        return [self._back.pack(p.values(pointwise) * gain[p.columns]), self._flipped.pack(self._taps.values(taps))]

    def gradients(self, d_taps: Tensor, d_folded: Tensor, d_rows: Tensor, gain: Tensor, offset: Tensor,
                  pointwise: Tensor) -> list[Tensor]:  # fmt: skip
        """Those of gain, offset, 1x1 layer and taps, from what the kernel wrote: of taps, folded 1x1 layer and its rows'
        offsets."""
        p, values = self._pointwise, self._pointwise.values(pointwise)
        d_values = self._forward.gradient(d_folded)
        d_offsets = d_rows.new_zeros(len(p.alive)).index_copy_(0, self._rows, d_rows)[p.rows]
        return [torch.zeros_like(gain).index_add_(0, p.columns, d_values * values),
                torch.zeros_like(offset).index_add_(0, p.columns, d_offsets * values),
                p.spread(d_values * gain[p.columns] + d_offsets * offset[p.columns]),
                self._taps.spread(self._tapped.entry_gradient(d_taps))]  # fmt: skip


class Product:
    """A 1x1 convolution behind others, of some ``columns``, or all."""

    def __init__(self, alive: Tensor, columns: Tensor | None = None) -> None:
        self._entries = Entries(alive)
        numbers = self._entries.numbers if columns is None else self._entries.numbers[:, columns]
        self._forward, self._back = (Pattern(self._entries, _cpu.pack(n)) for n in (numbers, numbers.T))
        self.gradient_length = self._forward.gradient_floats

    def pack(self, weight: Tensor) -> Tensor:
        """The packed matrix."""
        return self._forward.pack(self._entries.values(weight))

    def pack_back(self, weight: Tensor) -> Tensor:
        """The same, transposed."""
        return self._back.pack(self._entries.values(weight))

    def gradient(self, written: Tensor) -> Tensor:
        """The weight's, from what a kernel wrote."""
        return self._entries.spread(self._forward.gradient(written))
