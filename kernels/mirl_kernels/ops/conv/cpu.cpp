// A k x k convolution, with strides and groups, whose store can shuffle pixels and add a residual.
#include "conv.h"

namespace MIRL_ISA {
namespace {

// Takes the product's rows for a group of vectors, and stores them as pixels of y: shuffled, with the
// residual added.
class ShuffledStore {
  const MirlConv& a;
  const Step& step;
  const Place* const at;
  const int64_t r = a.shuffle;
  Vec even[WIDE];  // an even row of the product waits for the odd one, whose pixels go between

  __attribute__((always_inline)) void put(int64_t channel, int64_t y, int64_t x, Vec value,
                                          int64_t valid) const {
    const Place to{0, 0, std::min(valid, a.width - x)};
    if (to.valid <= 0 || y >= a.height) return;
    if (a.residual.data) value += load(a.residual.at(step.b, channel, y, x), to);
    store(a.y.at(step.b, channel, y, x), value, to);
  }
  void put_one(int64_t channel, int64_t y, int64_t x, float value) const {
    if (x < a.width && y < a.height)
      *a.y.at(step.b, channel, y, x) =
          value + (a.residual.data ? *a.residual.at(step.b, channel, y, x) : 0.0f);
  }

  // Pixels go apart by two.
  void spread_pairs(int64_t o, int64_t v, Vec sum, int64_t y, int64_t x, int64_t valid) {
    if (o % 2 == 0) {
      even[v] = sum;
      return;
    }
    const int64_t channel = o / 4, below = y * 2 + o % 4 / 2;
    put(channel, below, 2 * x, MIRL_SHUFFLE(even[v], sum, MIRL_LOW), std::min(L, 2 * valid));
    if (2 * valid > L) put(channel, below, 2 * x + L, MIRL_SHUFFLE(even[v], sum, MIRL_HIGH), 2 * valid - L);
  }
  // Every other pixel goes to another channel; x is even.
  void split_pairs(int64_t o, Vec sum, int64_t y, int64_t x, int64_t valid) const {
    const int64_t channel = o * 4 + y % 2 * 2;
    put(channel, y / 2, x / 2, MIRL_SHUFFLE(sum, sum, MIRL_EVEN), (valid + 1) / 2);
    if (valid > 1) put(channel + 1, y / 2, x / 2, MIRL_SHUFFLE(sum, sum, MIRL_ODD), valid / 2);
  }
  // Any other shuffle, one by one.
  void put_each(int64_t o, Vec sum, int64_t y, int64_t x, int64_t valid) const {
    for (int64_t p = 0; p < valid; ++p)
      if (r > 0) put_one(o / (r * r), y * r + o % (r * r) / r, (x + p) * r + o % r, sum[p]);
      else put_one(o * r * r + y % -r * -r + (x + p) % -r, y / -r, (x + p) / -r, sum[p]);
  }

 public:
  ShuffledStore(const MirlConv& a, const Step& step, const Place* at) : a(a), step(step), at(at) {}

  // Row o of the product for vector v. Rows come in order.
  void operator()(int64_t o, int64_t v, Vec sum) {
    const int64_t y = step.y + at[v].row, x = step.x0 + at[v].column, valid = at[v].valid;
    if (r == 1) put(o, y, x, sum, valid);
    else if (r == 2) spread_pairs(o, v, sum, y, x, valid);
    else if (r == -2 && x % 2 == 0) split_pairs(o, sum, y, x, valid);
    else put_each(o, sum, y, x, valid);
  }
};

// The size of what is computed, before the shuffle.
MirlSize computed_size(const MirlConv& a) {
  const int64_t r = a.shuffle;
  MirlSize computed = a.size;
  computed.height = r > 0 ? (a.height + r - 1) / r : a.height * -r;
  computed.width = r > 0 ? (a.width + r - 1) / r : a.width * -r;
  return computed;
}

}  // namespace

void conv(MirlConv& a) {
  const MirlMatrix& m = *a.weight;
  Columns columns(m);
  const Phases x{a.x, a.size, a.stride_y, a.stride_x};
  const Strips s = columns.strips(computed_size(a), x, a.threads);
  auto fill = [&](const Filling& f) { columns.fill(s, x, f); };
  run_strips(s, 0, (columns.widest + columns.tallest) * PANEL, a.threads, fill, [&](const Step& step) {
    float *panel = step.extra, *partial = panel + columns.widest * PANEL;
    grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t n) {
      enter(Phase::convolution);
      ShuffledStore store_row(a, step, at);
      for (int64_t i = 0, column = 0; i < m.chunks; column += columns.chunks[i++].columns) {
        const MirlRows& chunk = columns.chunks[i];
        const int64_t row = m.chunk(i).first_row;
        const bool begins = i == 0 || m.chunk(i - 1).first_row != row;
        const bool ends = i + 1 == m.chunks || m.chunk(i + 1).first_row != row;
        columns.gather(s, step, at, n, column, chunk.columns, panel);
        product(chunk, panel, n, [&](int64_t o, int64_t first, auto wide, const Vec* sums) {
          for (int64_t v = first; v < first + wide; ++v) {
            float* so_far = partial + o * PANEL + v * L;
            const Vec sum = begins ? sums[v - first] : sums[v - first] + load(so_far);
            if (ends) store_row(row + o, v, activated(sum, a.activation));
            else store(so_far, sum);
          }
        });
      }
    });
  });
}

}  // namespace MIRL_ISA
