// A k x k convolution: a product whose columns are the ring's channels, shifted, in chunks whose panels stay
// in the first-level cache.
#pragma once
#include "phases.h"

namespace MIRL_ISA {

// The columns of a packed convolution: its chunks, and where in the ring, which holds the channels that are
// read, in their order, each column's pixels are.
struct Columns {
  const MirlMatrix& m;
  const MirlTap* tap;
  std::vector<MirlRows> chunks;
  std::vector<int32_t> channels;
  std::vector<int64_t> index,
      offsets;  // of each column's channel among them; for every slot that the first row may have
  int64_t count = 0, widest = 0, tallest = 0;

  explicit Columns(const MirlMatrix& m) : m(m), tap(m.tap()) {
    for (int64_t i = 0; i < m.chunks; ++i) {
      chunks.push_back(m.view(i));
      count += chunks[i].columns;
      widest = std::max(widest, chunks[i].columns), tallest = std::max(tallest, chunks[i].rows);
    }
    for (int64_t i = 0; i < count; ++i) {
      if (channels.empty() || channels.back() != tap[i].channel) channels.push_back(tap[i].channel);
      index.push_back(channels.size() - 1);
    }
  }

  // The strips of what is computed from x.
  Strips strips(const MirlSize& computed, const Phases& x, int64_t threads) {
    const Strips s(computed, channels.size(), threads, reach_of(tap, count), x.height(), x.width());
    for (int64_t slot = 0; slot < s.slots; ++slot)
      for (int64_t i = 0; i < count; ++i)
        offsets.push_back(index[i] * s.hidden_stride +
                          (slot + s.reach.above + tap[i].dy) % s.slots * s.pitch + tap[i].dx);
    return s;
  }

  void fill(const Strips& s, const Phases& x, const Filling& f) const {
    if (x.phases() > 1) {
      for (int64_t c = 0; c < s.hidden; ++c)
        for (int64_t v = 0; v < f.n; ++v)
          store(f.to[v] + c * s.hidden_stride,
                x.at(f.b, channels[c], f.y + f.at[v].row, f.x + f.at[v].column, f.at[v].valid));
      return;
    }
    if (f.whole && f.at[f.n - 1].row == f.at->row)  // one stretch of memory
      return with_vectors(f.n, [&](auto N) {
        const float* image = x.x.at(f.b, 0, f.y + f.at->row, f.x + f.at->column);
        for (int64_t c = 0; c < s.hidden; ++c) {
          const float* from = image + channels[c] * x.x.channel;
          float* to = f.to[0] + c * s.hidden_stride;
          for (int v = 0; v < N; ++v) {
            if (v % (16 / L) == 0) __builtin_prefetch(from + v * L + s.step * x.x.row);
            store(to + v * L, load(from + v * L));
          }
        }
      });
    const float *from[WIDE], *image = x.x.at(f.b, 0, f.y, f.x);
    for (int64_t v = 0; v < f.n; ++v) from[v] = image + f.at[v].row * x.x.row + f.at[v].column;
    for (int64_t c = 0; c < s.hidden; ++c)
      for (int64_t v = 0; v < f.n; ++v) {
        const float* p = from[v] + channels[c] * x.x.channel;
        __builtin_prefetch(p + s.step * x.x.row);
        store(f.to[v] + c * s.hidden_stride, load(p, f.at[v]));
      }
  }

  // Columns first .. first + columns of n vectors of pixels.
  void gather(const Strips& s, const Step& step, const Place* at, int64_t n, int64_t first, int64_t columns,
              float* panel) const {
    const float* in[WIDE];
    const int64_t* offset[WIDE];
    for (int64_t v = 0; v < n; ++v) {
      in[v] = step.hidden + at[v].column;
      offset[v] = offsets.data() + (step.slot + at[v].row) % s.slots * count + first;
    }
    if (at[n - 1].row == at->row)  // one stretch of memory
      return with_vectors(n, [&](auto N) {
        for (int64_t c = 0; c < columns; ++c) {
          const float* from = in[0] + offset[0][c];
          for (int v = 0; v < N; ++v) store(panel + c * PANEL + v * L, load(from + v * L));
        }
      });
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t v = 0; v < n; ++v) store(panel + c * PANEL + v * L, load(in[v] + offset[v][c]));
  }
};

void conv(MirlConv& a);

}  // namespace MIRL_ISA
