// A k x k convolution: a product whose columns are the ring's channels, shifted, in chunks whose panels stay
// in the first-level cache.
#pragma once
#include "phases.h"

namespace MIRL_ISA {

// The columns of a packed convolution: its chunks, and where in the ring, which holds the channels that are
// read, in their order, each column's pixels are.
struct Columns {
  // Where a column's pixels are: so many floats from the row that `line` has for it.
  struct Column {
    int32_t offset, row;
  };

  const MirlMatrix& m;
  const MirlTap* tap;
  std::vector<MirlRows> chunks;
  std::vector<int32_t> channels, line;  // where row i, counted from the first slot on, begins
  std::vector<Column> columns;
  int64_t count = 0, widest = 0, tallest = 0;

  explicit Columns(const MirlMatrix& m) : m(m), tap(m.tap()) {
    for (int64_t i = 0; i < m.chunks; ++i) {
      chunks.push_back(m.view(i));
      count += chunks[i].columns;
      widest = std::max(widest, chunks[i].columns), tallest = std::max(tallest, chunks[i].rows);
    }
    for (int64_t i = 0; i < count; ++i) {
      if (channels.empty() || channels.back() != tap[i].channel) channels.push_back(tap[i].channel);
      columns.push_back({int32_t(channels.size() - 1), 0});  // offset: of its channel among those of the ring
    }
  }

  // The strips of what is computed from x.
  Strips strips(const MirlSize& computed, const Phases& x, int64_t threads) {
    const Strips s(computed, channels.size(), threads, reach_of(tap, count), x.height(), x.width());
    for (int64_t i = 0; i < count; ++i)
      columns[i] = {int32_t(columns[i].offset * s.hidden_stride + tap[i].dx),
                    int32_t(s.reach.above + tap[i].dy)};
    for (int64_t i = 0; i < s.slots + s.reach.above + s.reach.below; ++i)
      line.push_back(int32_t(i % s.slots * s.pitch));
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
    const Column* column = this->columns.data() + first;
    if (at[n - 1].row == at->row) {  // one stretch of memory
      const Source from = source(s, step, *at);
      return with_vectors(n, [&](auto N) {
        for (int64_t c = 0; c < columns; ++c) {
          const float* p = from.at(column[c]);
          for (int v = 0; v < N; ++v) store(panel + c * PANEL + v * L, load(p + v * L));
        }
      });
    }
    for (int64_t v = 0; v < n; ++v) {
      const Source from = source(s, step, at[v]);
      for (int64_t c = 0; c < columns; ++c) store(panel + c * PANEL + v * L, load(from.at(column[c])));
    }
  }

  // Whether a chunk's rows read the ring, and no panel, for a group of vectors: within one row of pixels, as
  // entries would have to be read again for each.
  static bool reads_ring(const MirlRows& chunk, const Place* at, int64_t n) {
    return !chunk.dense && !chunk.tiles && at[n - 1].row == at->row &&
           mirl::conv_reads_ring(L, chunk.start[chunk.rows], chunk.columns);
  }

  // Such a chunk, whose columns are those from `first` on, times these vectors, as `product`.
  template <class Emit>
  void multiply(const MirlRows& chunk, const Strips& s, const Step& step, const Place* at, int64_t n,
                int64_t first, Emit&& emit) const {
    const Column* column = columns.data() + first;
    const Source from = source(s, step, *at);
    with_vectors(n, [&](auto wide) {
      for (int64_t r = 0; r < chunk.rows; ++r) {
        Vec sums[wide];
        for (int v = 0; v < wide; ++v) sums[v] = all(chunk.bias ? chunk.bias[r] : 0.0f);
        for (const MirlEntry *k = chunk.entry + chunk.start[r], *end = chunk.entry + chunk.start[r + 1];
             k < end; ++k) {
          const float* p = from.at(column[k->column()]);
          const Vec w = all(k->value);
          for (int v = 0; v < wide; ++v) sums[v] += w * load(p + v * L);
        }
        emit(r, 0, wide, sums);
      }
    });
  }

 private:
  // The ring as it is for a vector of pixels.
  struct Source {
    const float* in;
    const int32_t* line;

    const float* at(const Column& c) const { return in + line[c.row] + c.offset; }
  };
  Source source(const Strips& s, const Step& step, const Place& at) const {
    return {step.hidden + at.column, line.data() + (step.slot + at.row) % s.slots};
  }
};

void conv(MirlConv& a);

}  // namespace MIRL_ISA
