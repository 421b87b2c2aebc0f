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
  const bool straight;  // whether the group's pixels, and where they go, are one stretch of memory
  Vec even[WIDE];       // an even row of the product waits for the odd one, whose pixels go between

  bool is_straight(int64_t n) const {
    const int64_t times = std::max<int64_t>(r, 1), end = step.x0 + at->column + n * L;
    return at[n - 1].row == at->row && at[n - 1].valid == L &&
           end * times <= (r < 0 ? a.width * -r : a.width) &&
           (r < 0 || (step.y + at->row + 1) * r <= a.height);
  }
  template <int N>
  void put_run(int64_t channel, int64_t y, int64_t x, const Vec* values) const {
    float* to = a.y.at(step.b, channel, y, x);
    const float* from = a.residual.data ? a.residual.at(step.b, channel, y, x) : nullptr;
    for (int v = 0; v < N; ++v) store(to + v * L, from ? values[v] + load(from + v * L) : values[v]);
  }

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

  // Vector v of row o.
  void put_vector(int64_t o, int64_t v, Vec sum) {
    const int64_t y = step.y + at[v].row, x = step.x0 + at[v].column, valid = at[v].valid;
    if (r == 1) put(o, y, x, sum, valid);
    else if (r == 2) spread_pairs(o, v, sum, y, x, valid);
    else if (r == -2 && x % 2 == 0) split_pairs(o, sum, y, x, valid);
    else put_each(o, sum, y, x, valid);
  }

 public:
  ShuffledStore(const MirlConv& a, const Step& step, const Place* at, int64_t n)
      : a(a), step(step), at(at), straight(is_straight(n)) {}

  // N vectors of row o of the product, from `first` on. Rows come in order.
  template <int N>
  void operator()(int64_t o, int64_t first, Vectors<N>, const Vec* sums) {
    const int64_t y = step.y + at->row, x = step.x0 + at->column + first * L;
    if (straight && r == 1) return put_run<N>(o, y, x, sums);
    if (straight && r == 2 && o % 2) {
      Vec pixels[2 * N];
      for (int v = 0; v < N; ++v) {
        pixels[2 * v] = MIRL_SHUFFLE(even[first + v], sums[v], MIRL_LOW);
        pixels[2 * v + 1] = MIRL_SHUFFLE(even[first + v], sums[v], MIRL_HIGH);
      }
      return put_run<2 * N>(o / 4, 2 * y + o % 4 / 2, 2 * x, pixels);
    }
    if constexpr (N % 2 == 0)
      if (straight && r == -2 && x % 2 == 0) {
        Vec pixels[N];
        for (int v = 0; v < N; v += 2) {
          pixels[v / 2] = MIRL_SHUFFLE(sums[v], sums[v + 1], MIRL_EVEN);
          pixels[(N + v) / 2] = MIRL_SHUFFLE(sums[v], sums[v + 1], MIRL_ODD);
        }
        const int64_t channel = o * 4 + y % 2 * 2;
        put_run<N / 2>(channel, y / 2, x / 2, pixels);
        return put_run<N / 2>(channel + 1, y / 2, x / 2, pixels + N / 2);
      }
    for (int v = 0; v < N; ++v) put_vector(o, first + v, sums[v]);
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
      ShuffledStore store_row(a, step, at, n);
      for (int64_t i = 0, column = 0; i < m.chunks; column += columns.chunks[i++].columns) {
        const MirlRows& chunk = columns.chunks[i];
        const int64_t row = m.chunk(i).first_row;
        const bool begins = i == 0 || m.chunk(i - 1).first_row != row;
        const bool ends = i + 1 == m.chunks || m.chunk(i + 1).first_row != row;
        auto add = [&](int64_t o, int64_t first, auto wide, const Vec* sums) {
          float* so_far = partial + o * PANEL + first * L;
          Vec totals[wide];
          for (int v = 0; v < wide; ++v) {
            totals[v] = begins ? sums[v] : sums[v] + load(so_far + v * L);
            if (ends) totals[v] = activated(totals[v], a.activation);
            else store(so_far + v * L, totals[v]);
          }
          if (ends) store_row(row + o, first, wide, totals);
        };
        if (columns.reads_ring(chunk, at, n)) {
          columns.multiply(chunk, s, step, at, n, column, add);
        } else {
          columns.gather(s, step, at, n, column, chunk.columns, panel);
          product(chunk, panel, n, add);
        }
      }
    });
  });
}

}  // namespace MIRL_ISA
