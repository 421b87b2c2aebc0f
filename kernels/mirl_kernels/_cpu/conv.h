// A k x k convolution: a product whose columns are the ring's channels, shifted, in chunks whose panels stay in the
// first-level cache. Shared by the conv and the prompt op.
#pragma once
#include "strips.h"

namespace MIRL_ISA {

inline void run_conv(const MirlConv& a) {
  const int64_t k = a.kernel, r = a.shuffle, outputs = a.weight[0].rows;
  const Strips s(a.size, a.size.channels, a.threads, k / 2);
  int64_t columns = 0, widest = 0;
  for (int64_t i = 0; i < a.chunks; ++i)
    columns += a.weight[i].columns, widest = std::max(widest, a.weight[i].columns);
  // Where each column's pixels are in the ring, for every slot that the first row may have.
  std::vector<int64_t> offsets;
  for (int64_t slot = 0; slot < s.slots; ++slot)
    for (int64_t i = 0; i < columns; ++i)
      offsets.push_back(a.column[i] / (k * k) * s.hidden_stride + (slot + a.column[i] / k % k) % s.slots * s.pitch +
                        a.column[i] % k - s.halo);
  auto fill = [&](const Filling& f) {
    for (int64_t v = 0; v < f.n; ++v) {
      const float* from = a.x.at(f.b, 0, f.y + f.at[v].row, f.x + f.at[v].column);
      for (int64_t c = 0; c < a.size.channels; ++c) {
        __builtin_prefetch(from + c * a.x.channel + s.step * a.x.row);
        store(f.to[v] + c * s.hidden_stride, load(from + c * a.x.channel, f.at[v]));
      }
    }
  };
  run_strips(s, 0, (widest + outputs) * PANEL, a.threads, fill, [&](const Step& step) {
    float *panel = step.extra, *sums_so_far = panel + widest * PANEL;
    auto put = [&](int64_t channel, int64_t y, int64_t x, Vec value, int64_t valid) {
      const Place at{0, 0, valid};
      if (a.residual.data) value += load(a.residual.at(step.b, channel, y, x), at);
      store(a.y.at(step.b, channel, y, x), value, at);
    };
    auto put_one = [&](int64_t channel, int64_t y, int64_t x, float value) {
      *a.y.at(step.b, channel, y, x) = value + (a.residual.data ? *a.residual.at(step.b, channel, y, x) : 0.0f);
    };
    const std::vector<Place> all = places(1, step.x1 - step.x0);
    for (int64_t i = 0; i < step.count; ++i)
      grouped(all.size(), [&](int64_t first, int64_t n) {
        const Place* at = all.data() + first;
        const float* in = step.hidden + at->column;
        const int64_t* offset = offsets.data() + (step.slot + i) % s.slots * columns;
        const int64_t y = step.y + i;
        Vec even[WIDE];  // an even row of the product waits for the odd one, whose pixels go between its own
        auto emit = [&](int64_t o, int64_t v, Vec sum) {
          const int64_t x = step.x0 + at[v].column, valid = at[v].valid;
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
        for (int64_t chunk = 0; chunk < a.chunks; offset += a.weight[chunk++].columns) {
          for (int64_t c = 0; c < a.weight[chunk].columns; ++c)
            for (int64_t v = 0; v < n; ++v) store(panel + c * PANEL + v * L, load(in + offset[c] + v * L));
          product(a.weight[chunk], panel, n, [&](int64_t o, int64_t begin, auto wide, const Vec* sums) {
            for (int64_t v = begin; v < begin + wide; ++v) {
              float* so_far = sums_so_far + o * PANEL + v * L;
              const Vec sum = chunk ? sums[v - begin] + load(so_far) : sums[v - begin];
              if (chunk + 1 < a.chunks) store(so_far, sum);
              else emit(o, v, sum);
            }
          });
        }
      });
  });
}

}  // namespace MIRL_ISA
