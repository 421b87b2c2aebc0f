// A k x k convolution: a product whose columns are the ring's channels, shifted, in chunks whose panels stay in the
// first-level cache. Shared by the conv and the prompt op.
#pragma once
#include "phases.h"

namespace MIRL_ISA {

inline void run_conv(const MirlConv& a) {
  const int64_t r = a.shuffle;
  const MirlMatrix& m = *a.weight;
  std::vector<MirlRows> chunks;
  int64_t columns = 0, widest = 0, tallest = 0;
  for (int64_t i = 0; i < m.chunks; ++i) {
    chunks.push_back(m.view(i));
    columns += chunks[i].columns;
    widest = std::max(widest, chunks[i].columns), tallest = std::max(tallest, chunks[i].rows);
  }
  // The ring holds the channels that are read, in their order.
  const MirlTap* tap = m.tap();
  std::vector<int32_t> channels;
  std::vector<int64_t> index;  // of each column's channel among them
  for (int64_t i = 0; i < columns; ++i) {
    if (channels.empty() || channels.back() != tap[i].channel) channels.push_back(tap[i].channel);
    index.push_back(channels.size() - 1);
  }
  const Phases x{a.x, a.size, a.stride_y, a.stride_x};
  MirlSize computed = a.size;
  computed.height = r > 0 ? (a.height + r - 1) / r : a.height * -r;
  computed.width = r > 0 ? (a.width + r - 1) / r : a.width * -r;
  const Strips s(computed, channels.size(), a.threads, reach_of(tap, columns), x.height(), x.width());
  // Where each column's pixels are in the ring, for every slot that the first row may have.
  std::vector<int64_t> offsets;
  for (int64_t slot = 0; slot < s.slots; ++slot)
    for (int64_t i = 0; i < columns; ++i)
      offsets.push_back(index[i] * s.hidden_stride + (slot + s.reach.above + tap[i].dy) % s.slots * s.pitch + tap[i].dx);
  auto fill = [&](const Filling& f) {
    if (x.phases() > 1) {
      for (int64_t c = 0; c < s.hidden; ++c)
        for (int64_t v = 0; v < f.n; ++v)
          store(f.to[v] + c * s.hidden_stride, x.at(f.b, channels[c], f.y + f.at[v].row, f.x + f.at[v].column, f.at[v].valid));
      return;
    }
    const float *from[WIDE], *image = a.x.at(f.b, 0, f.y, f.x);
    for (int64_t v = 0; v < f.n; ++v) from[v] = image + f.at[v].row * a.x.row + f.at[v].column;
    for (int64_t c = 0; c < s.hidden; ++c)
      for (int64_t v = 0; v < f.n; ++v) {
        const float* p = from[v] + channels[c] * a.x.channel;
        __builtin_prefetch(p + s.step * a.x.row);
        store(f.to[v] + c * s.hidden_stride, load(p, f.at[v]));
      }
  };
  run_strips(s, 0, (widest + tallest) * PANEL, a.threads, fill, [&](const Step& step) {
    float *panel = step.extra, *sums_so_far = panel + widest * PANEL;
    auto put = [&](int64_t channel, int64_t y, int64_t x, Vec value, int64_t valid) {
      const Place at{0, 0, std::min(valid, a.width - x)};
      if (at.valid <= 0 || y >= a.height) return;
      if (a.residual.data) value += load(a.residual.at(step.b, channel, y, x), at);
      store(a.y.at(step.b, channel, y, x), value, at);
    };
    auto put_one = [&](int64_t channel, int64_t y, int64_t x, float value) {
      if (x < a.width && y < a.height)
        *a.y.at(step.b, channel, y, x) = value + (a.residual.data ? *a.residual.at(step.b, channel, y, x) : 0.0f);
    };
    const std::vector<Place> all = places(step.count, step.x1 - step.x0);
    grouped(all.size(), [&](int64_t first, int64_t n) {
      const Place* at = all.data() + first;
      const float* in[WIDE];
      const int64_t* offset[WIDE];
      for (int64_t v = 0; v < n; ++v) {
        in[v] = step.hidden + at[v].column;
        offset[v] = offsets.data() + (step.slot + at[v].row) % s.slots * columns;
      }
      const bool stretch = at[n - 1].row == at->row;  // of memory
      Vec even[WIDE];  // an even row of the product waits for the odd one, whose pixels go between its own
      auto emit = [&](int64_t o, int64_t v, Vec sum) {
        const int64_t y = step.y + at[v].row, x = step.x0 + at[v].column, valid = at[v].valid;
        if (r == 1) {
          put(o, y, x, sum, valid);
        } else if (r == 2) {
          if (o % 2 == 0) {
            even[v] = sum;
            return;
          }
          const int64_t channel = o / 4, below = y * 2 + o % 4 / 2;
          put(channel, below, 2 * x, MIRL_SHUFFLE(even[v], sum, MIRL_LOW), std::min(L, 2 * valid));
          if (2 * valid > L) put(channel, below, 2 * x + L, MIRL_SHUFFLE(even[v], sum, MIRL_HIGH), 2 * valid - L);
        } else if (r == -2 && x % 2 == 0) {
          put(o * 4 + y % 2 * 2, y / 2, x / 2, MIRL_SHUFFLE(sum, sum, MIRL_EVEN), (valid + 1) / 2);
          if (valid > 1) put(o * 4 + y % 2 * 2 + 1, y / 2, x / 2, MIRL_SHUFFLE(sum, sum, MIRL_ODD), valid / 2);
        } else if (r > 0) {
          for (int64_t p = 0; p < valid; ++p) put_one(o / (r * r), y * r + o % (r * r) / r, (x + p) * r + o % r, sum[p]);
        } else {
          for (int64_t p = 0; p < valid; ++p)
            put_one(o * r * r + y % -r * -r + (x + p) % -r, y / -r, (x + p) / -r, sum[p]);
        }
      };
      for (int64_t i = 0, column = 0; i < m.chunks; column += chunks[i++].columns) {
        const int64_t row = m.chunk(i).first_row;
        const bool begins = i == 0 || m.chunk(i - 1).first_row != row;
        const bool ends = i + 1 == m.chunks || m.chunk(i + 1).first_row != row;
        for (int64_t c = 0; c < chunks[i].columns; ++c)
          for (int64_t v = 0; v < n; ++v) {
            const float* from = stretch ? in[0] + offset[0][column + c] + v * L : in[v] + offset[v][column + c];
            store(panel + c * PANEL + v * L, load(from));
          }
        product(chunks[i], panel, n, [&](int64_t o, int64_t first, auto wide, const Vec* sums) {
          for (int64_t v = first; v < first + wide; ++v) {
            float* so_far = sums_so_far + o * PANEL + v * L;
            const Vec sum = begins ? sums[v - first] : sums[v - first] + load(so_far);
            if (ends) emit(row + o, v, activated(sum, a.activation));
            else store(so_far, sum);
          }
        });
      }
    });
  });
}

}  // namespace MIRL_ISA
