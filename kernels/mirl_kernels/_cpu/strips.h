// What MDTA and GDFN begin with: layer norm, sparse 1x1, sparse depthwise 3x3, without the hidden channels ever
// leaving the second-level cache. The image is cut into strips of columns; each runs down its rows, and the hidden
// rows that the taps still need stay in a ring. Everything else passes through panels in the first-level cache.
#pragma once
#include <vector>

#include "rows.h"

namespace MIRL_ISA {

// A vector of pixels: `valid` of them from `column` of row `row` on.
struct Place {
  int64_t row, column, valid;
};

// The vectors of `rows` rows of `columns` pixels each.
inline std::vector<Place> places(int64_t rows, int64_t columns) {
  std::vector<Place> all;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < columns; c += L) all.push_back({i, c, std::min(L, columns - c)});
  return all;
}

// f(first, n) for even groups of at most WIDE of `count` vectors.
template <class F>
inline void grouped(int64_t count, F&& f) {
  for (int64_t groups = (count + WIDE - 1) / WIDE, first = 0; groups; --groups) {
    const int64_t n = (count - first + groups - 1) / groups;
    f(first, n);
    first += n;
  }
}

inline Vec load(const float* p, const Place& at) { return at.valid == L ? load(p) : load(p, at.valid); }
inline void store(float* p, Vec v, const Place& at) {
  if (at.valid == L) store(p, v);
  else store(p, v, at.valid);
}

// Asks for a group's pixels before they are wanted, or written (a store that misses every cache costs more than what
// it stores), in shares between the arithmetic. (GCC drops calls of functions that do nothing but this.)
struct Fetch {
  const float* from[WIDE];
  int64_t n, channel, channels, parts, next = 0;

  Fetch(const MirlImage& image, int64_t b, int64_t channels, int64_t y, int64_t x, const Place* at, int64_t n, int64_t parts)
      : n(n), channel(image.channel), channels(channels), parts(std::max<int64_t>(1, parts)) {
    for (int64_t v = 0; v < n; ++v) from[v] = image.at(b, 0, y + at[v].row, x + at[v].column);
  }
  template <int WRITE>
  __attribute__((always_inline)) void share(int64_t part) {
    for (const int64_t end = channels * (part + 1) / parts; next < end; ++next)
      for (int64_t v = 0; v < n; ++v) __builtin_prefetch(from[v] + next * channel, WRITE, 3);
  }
};

// Layer norm, without its gain and bias, of V vectors of pixels to a panel: in two passes, since E[x^2] - E[x]^2 would
// lose digits.
template <int V>
inline void norm_panel(const float* const* x, const Place* at, int64_t x_channel, int64_t channels, float* panel) {
  Vec mean[V] = {}, scale[V] = {};
  bool whole = true;
  for (int v = 0; v < V; ++v) whole = whole && at[v].valid == L;
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      const float* from = x[v] + c * x_channel;
      const Vec value = whole ? load(from) : load(from, at[v]);
      store(panel + c * PANEL + v * L, value);
      mean[v] += value;
    }
  for (int v = 0; v < V; ++v) mean[v] = mean[v] / float(channels);
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      const Vec centred = load(panel + c * PANEL + v * L) - mean[v];
      scale[v] += centred * centred;
    }
  for (int v = 0; v < V; ++v) scale[v] = 1.0f / vsqrt(scale[v] / float(channels) + 1e-5f);
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      float* to = panel + c * PANEL + v * L;
      store(to, (load(to) - mean[v]) * scale[v]);
    }
}

struct Strips {
  MirlSize size;
  int64_t hidden;      // rows of the 1x1
  int64_t across = 1;  // strips
  int64_t width = 1;   // columns of a strip
  int64_t down = 1;    // parts that the rows are cut into, each recomputing two hidden rows
  int64_t step = 1;    // rows of the image done at once: several where they are short
  int64_t slots = 3;   // rows in the ring
  int64_t pitch = 0, hidden_stride = 0;
  static constexpr int64_t MARGIN = 16;  // columns before a row of the ring, of which the last is the left halo

  Strips(const MirlSize& s, int64_t hidden_rows, int64_t threads) : size(s), hidden(hidden_rows) {
    const double budget = 0.6 * mirl::second_level_floats();
    double best = 1e30;
    for (int64_t n = 1; n <= (s.width + 15) / 16; ++n) {
      const int64_t w = (s.width + n - 1) / n, computed = round_up(n == 1 ? w : w + 2, L);
      const double floats = double(hidden) * 3 * (computed + MARGIN);
      const double cost = double(n * computed) * std::max(1.0, floats / budget);
      if (cost < best) best = cost, across = n, width = w;
    }
    across = (s.width + width - 1) / width;
    const int64_t computed = round_up(across == 1 ? width : width + 2, L);
    step = std::max<int64_t>(1, std::min(s.height, PANEL / computed));
    slots = step + 2;
    pitch = round_up(computed + MARGIN, 16);
    hidden_stride = slots * pitch + MARGIN;
    if (hidden_stride / 16 % 2 == 0) hidden_stride += 16;  // an odd number of cache lines: channels meet in no set
    best = 1e30;
    for (int64_t n = 1; n <= std::max<int64_t>(1, std::min(4 * threads, s.height / 4)); ++n) {
      const int64_t turns = (s.batch * across * n + threads - 1) / threads;
      const double cost = double(turns) * ((s.height + n - 1) / n + 2.0);
      if (cost < best) best = cost, down = n;
    }
  }

  int64_t tasks() const { return across * down * size.batch; }
};

// The surviving 3x3 taps of each hidden channel, as offsets into the ring, for every slot that their first row may have.
struct Taps {
  const MirlRows& rows;
  std::vector<int32_t> offset;
  int64_t count;

  Taps(const MirlRows& dwconv, const Strips& s) : rows(dwconv), count(dwconv.start[dwconv.rows]) {
    for (int64_t slot = 0; slot < s.slots; ++slot)
      for (int64_t k = 0; k < count; ++k)
        offset.push_back(int32_t((slot + dwconv.column[k] / 3) % s.slots * s.pitch + dwconv.column[k] % 3 - 1));
  }

  // V vectors of a channel, from `in` on in each slot; the taps' first row is in slot `slot`.
  template <int V>
  void panel(int64_t channel, int64_t slot, const float* in, Vec* sums) const {
    for (int v = 0; v < V; ++v) sums[v] = Vec{};
    for (int32_t k = rows.start[channel], end = rows.start[channel + 1]; k < end; ++k) {
      const float* p = in + offset[slot * count + k];
      const Vec w = all(rows.value[k]);
      for (int v = 0; v < V; ++v) sums[v] += w * load(p + v * L);
    }
  }
};

// A step of a strip as its consumer sees it: rows y .. y + count of columns x0 .. x1 of item b are due, and the ring
// holds their hidden rows with those above and below.
struct Step {
  int64_t task, b, y, count, x0, x1;
  bool first, last;  // of its task
  int64_t slot;          // of hidden row y - 1
  const float* hidden;   // column x0 of slot 0 of channel 0
  float* extra;
};

// Runs every strip; consume(Step). `extra` floats of scratch memory are the consumer's.
template <class Consume>
void run_strips(const Strips& s, const MirlImage& x, const MirlRows& pointwise, int64_t extra, int64_t threads, Consume consume) {
  const int64_t channels = s.size.channels;
  auto task = [&](int64_t t) {
    const int64_t b = t / (s.across * s.down), part = t / s.across % s.down, strip = t % s.across;
    const int64_t x0 = strip * s.width, x1 = std::min(x0 + s.width, s.size.width);
    const int64_t first = std::max<int64_t>(x0 - 1, 0), last = std::min(x1 + 1, s.size.width);  // computed columns
    const int64_t top = s.size.height * part / s.down, bottom = s.size.height * (part + 1) / s.down;
    float* panel = mirl::scratch(channels * PANEL + s.hidden * s.hidden_stride + s.MARGIN + extra);
    float* hidden = panel + channels * PANEL;
    float* own = hidden + s.hidden * s.hidden_stride + s.MARGIN;
    std::memset(hidden, 0, sizeof(float) * (s.hidden * s.hidden_stride + s.MARGIN));
    const std::vector<Place> all = places(s.slots, last - first);
    const int64_t per_row = (last - first + L - 1) / L, behind = s.MARGIN + last - first;

    // Hidden rows y .. y + count into the ring from `slot` on; zero outside the image, as the padding is.
    auto fill = [&](int64_t y, int64_t count, int64_t slot) {
      int64_t begin = 0;
      for (; count && (y < 0 || y >= s.size.height); ++y, --count, slot = (slot + 1) % s.slots)
        for (int64_t h = 0; h < s.hidden; ++h)
          std::memset(hidden + h * s.hidden_stride + slot * s.pitch, 0, sizeof(float) * s.pitch);
      const int64_t inside = std::min(count, s.size.height - y);
      grouped(std::max<int64_t>(0, inside) * per_row, [&](int64_t from, int64_t n) {
        const Place* at = all.data() + begin + from;
        int64_t to[WIDE];
        const float* source[WIDE];
        for (int64_t v = 0; v < n; ++v) {
          to[v] = (slot + at[v].row) % s.slots * s.pitch + s.MARGIN + at[v].column;
          source[v] = x.at(b, 0, y + at[v].row, first + at[v].column);
        }
        with_vectors(n, [&](auto v) { norm_panel<v>(source, at, x.channel, channels, panel); });
        // The next group: of this step, else at the same place in the next.
        const int64_t next = from + n < inside * per_row ? y : std::min(y + s.step, s.size.height - inside);
        Fetch fetch(x, b, channels, next, first, next == y ? at + n : all.data(),
                    std::min<int64_t>(n, next == y ? inside * per_row - from - n : n), s.hidden);
        product(pointwise, panel, n, [&](int64_t h, int64_t begin, auto width, const Vec* sums) {
          if (begin == 0) fetch.template share<0>(h);
          for (int v = 0; v < width; ++v) store(hidden + h * s.hidden_stride + to[begin + v], sums[v]);
        });
      });
      for (int64_t i = 0; i < count; ++i, slot = (slot + 1) % s.slots) {
        const bool outside = i >= inside;
        if (outside)
          for (int64_t h = 0; h < s.hidden; ++h)
            std::memset(hidden + h * s.hidden_stride + slot * s.pitch, 0, sizeof(float) * s.pitch);
        else if ((last - first) % L && last == s.size.width)  // what the last vector wrote behind the image
          for (int64_t h = 0; h < s.hidden; ++h) hidden[h * s.hidden_stride + slot * s.pitch + behind] = 0;
      }
    };

    fill(top - 1, 2, 0);
    int64_t slot = 0;
    for (int64_t y = top; y < bottom; y += s.step) {
      const int64_t count = std::min(s.step, bottom - y);
      fill(y + 1, count, (slot + 2) % s.slots);
      consume(Step{t, b, y, count, x0, x1, y == top, y + count == bottom, slot, hidden + s.MARGIN + x0 - first, own});
      slot = (slot + count) % s.slots;
    }
  };
  mirl::parallel(s.tasks(), threads, task);
}

}  // namespace MIRL_ISA
