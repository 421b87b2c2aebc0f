// A k x k convolution, with strides and groups, whose store can shuffle pixels and add a residual.
#include "conv.h"

namespace MIRL_ISA {

void conv(MirlConv& a) {
  const int64_t r = a.shuffle;
  const MirlMatrix& m = *a.weight;
  Columns columns(m);
  const Phases x{a.x, a.size, a.stride_y, a.stride_x};
  MirlSize computed = a.size;
  computed.height = r > 0 ? (a.height + r - 1) / r : a.height * -r;
  computed.width = r > 0 ? (a.width + r - 1) / r : a.width * -r;
  const Strips s = columns.strips(computed, x, a.threads);
  auto fill = [&](const Filling& f) { columns.fill(s, x, f); };
  run_strips(s, 0, (columns.widest + columns.tallest) * PANEL, a.threads, fill, [&](const Step& step) {
    float *panel = step.extra, *sums_so_far = panel + columns.widest * PANEL;
    auto put = [&](int64_t channel, int64_t y, int64_t x, Vec value, int64_t valid) {
      const Place at{0, 0, std::min(valid, a.width - x)};
      if (at.valid <= 0 || y >= a.height) return;
      if (a.residual.data) value += load(a.residual.at(step.b, channel, y, x), at);
      store(a.y.at(step.b, channel, y, x), value, at);
    };
    auto put_one = [&](int64_t channel, int64_t y, int64_t x, float value) {
      if (x < a.width && y < a.height)
        *a.y.at(step.b, channel, y, x) =
            value + (a.residual.data ? *a.residual.at(step.b, channel, y, x) : 0.0f);
    };
    grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t n) {
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
          if (2 * valid > L)
            put(channel, below, 2 * x + L, MIRL_SHUFFLE(even[v], sum, MIRL_HIGH), 2 * valid - L);
        } else if (r == -2 && x % 2 == 0) {
          put(o * 4 + y % 2 * 2, y / 2, x / 2, MIRL_SHUFFLE(sum, sum, MIRL_EVEN), (valid + 1) / 2);
          if (valid > 1)
            put(o * 4 + y % 2 * 2 + 1, y / 2, x / 2, MIRL_SHUFFLE(sum, sum, MIRL_ODD), valid / 2);
        } else if (r > 0) {
          for (int64_t p = 0; p < valid; ++p)
            put_one(o / (r * r), y * r + o % (r * r) / r, (x + p) * r + o % r, sum[p]);
        } else {
          for (int64_t p = 0; p < valid; ++p)
            put_one(o * r * r + y % -r * -r + (x + p) % -r, y / -r, (x + p) / -r, sum[p]);
        }
      };
      for (int64_t i = 0, column = 0; i < m.chunks; column += columns.chunks[i++].columns) {
        const MirlRows& chunk = columns.chunks[i];
        const int64_t row = m.chunk(i).first_row;
        const bool begins = i == 0 || m.chunk(i - 1).first_row != row;
        const bool ends = i + 1 == m.chunks || m.chunk(i + 1).first_row != row;
        columns.gather(s, step, at, n, column, chunk.columns, panel);
        product(chunk, panel, n, [&](int64_t o, int64_t first, auto wide, const Vec* sums) {
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
