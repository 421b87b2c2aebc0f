// How an image is worked through by ops whose taps reach over neighbouring pixels: cut into strips of
// columns, each of which runs down its rows, while the rows that the taps still need stay in a ring in the
// second-level cache. MDTA and GDFN begin alike (`fill_normalised`): layer norm, sparse 1x1, and the ring
// holds the hidden channels.
#pragma once
#include <vector>

#include "rows.h"

namespace MIRL_ISA {

constexpr int64_t TRAINING_TASKS =
    8;  // into how many tasks training cuts what is summed up, whatever the number of threads

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

// f(at, n) for such groups of the vectors of rows of pixels: at[0] .. at[n - 1].
template <class F>
inline void grouped(int64_t rows, int64_t columns, F&& f) {
  const std::vector<Place> all = places(rows, columns);
  grouped(all.size(), [&](int64_t first, int64_t n) { f(all.data() + first, n); });
}

constexpr int TAPPED = 4;  // vectors whose taps fit the registers

// f(v, Vectors<k>) for runs of at most FEW of n vectors, each within a row.
template <int FEW, class F>
inline void runs(const Place* at, int64_t n, F&& f) {
  for (int64_t v = 0; v < n;) {
    if (v + FEW <= n && at[v].row == at[v + FEW - 1].row) {
      f(v, Vectors<FEW>{}), v += FEW;
      continue;
    }
    if constexpr (FEW > 2)
      if (v + 2 <= n && at[v].row == at[v + 1].row) {
        f(v, Vectors<2>{}), v += 2;
        continue;
      }
    if constexpr (FEW > 1) f(v, Vectors<1>{}), v += 1;
  }
}

inline Vec load(const float* p, const Place& at) { return at.valid == L ? load(p) : load(p, at.valid); }
inline void store(float* p, Vec v, const Place& at) {
  if (at.valid == L) store(p, v);
  else store(p, v, at.valid);
}

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows <= L, j < columns <= L.
inline void turn(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows,
                 int64_t columns) {
  Vec block[L] = {};
  for (int64_t i = 0; i < rows; ++i) block[i] = load(from + i * from_stride, Place{0, 0, columns});
  transpose(block);
  for (int64_t j = 0; j < columns; ++j) store(to + j * to_stride, block[j], Place{0, 0, rows});
}

// Asks for a group's pixels before they are wanted, or written (a store that misses every cache costs more
// than what it stores), in shares between the arithmetic. (GCC drops calls of functions that do nothing but
// this.)
class Fetch {
  const float* from[WIDE];
  int64_t n, channel, channels, parts, due = 0;

 public:
  Fetch(const MirlImage& image, int64_t b, int64_t channels, int64_t y, int64_t x, const Place* at, int64_t n,
        int64_t parts)
      : n(n), channel(image.channel), channels(channels), parts(std::max<int64_t>(1, parts)) {
    for (int64_t v = 0; v < n; ++v) from[v] = image.at(b, 0, y + at[v].row, x + at[v].column);
  }
  // Looks so many pixels further.
  void skip(int64_t pixels) {
    for (int64_t v = 0; v < n; ++v) from[v] += pixels;
  }
  // One of the parts.
  template <int WRITE>
  __attribute__((always_inline)) void share() {
    for (due += channels; due >= parts; due -= parts)
      for (int64_t v = 0; v < n; ++v) {
        __builtin_prefetch(from[v], WRITE, 3);
        from[v] += channel;
      }
  }
};

// Takes the rows of a product as channels, and writes them to y with those of x added.
struct Residual {
  const float* from[WIDE];
  float* to[WIDE];
  const Place* at;
  int64_t x_channel, y_channel;
  bool whole = true;

  Residual(const MirlImage& x, const MirlImage& y, int64_t b, int64_t line, int64_t column, const Place* at,
           int64_t n)
      : at(at), x_channel(x.channel), y_channel(y.channel) {
    for (int64_t v = 0; v < n; ++v) {
      from[v] = x.at(b, 0, line + at[v].row, column + at[v].column);
      to[v] = y.at(b, 0, line + at[v].row, column + at[v].column);
      whole = whole && at[v].valid == L;
    }
  }
  template <int N>
  void operator()(int64_t c, int64_t begin, Vectors<N>, const Vec* sums) const {
    if (whole)
      for (int v = 0; v < N; ++v)
        store(to[begin + v] + c * y_channel, sums[v] + load(from[begin + v] + c * x_channel));
    else
      for (int64_t v = begin; v < begin + N; ++v)
        store(to[v] + c * y_channel, sums[v - begin] + load(from[v] + c * x_channel, at[v]), at[v]);
  }
};

// A panel of an image, zero where there is no pixel.
template <int V>
inline void gather(const MirlImage& x, int64_t b, int64_t channels, int64_t y, int64_t column,
                   const Place* at, float* panel) {
  const float* from[V];
  bool whole = true;
  for (int v = 0; v < V; ++v)
    from[v] = x.at(b, 0, y + at[v].row, column + at[v].column), whole = whole && at[v].valid == L;
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      const float* p = from[v] + c * x.channel;
      store(panel + c * PANEL + v * L, whole ? load(p) : load(p, at[v]));
    }
}

// Layer norm, without its gain and bias (and without centring, if need be), of V vectors of pixels in a
// panel: in two passes, since E[x^2] - E[x]^2 would lose digits. `deviation` takes the reciprocals of the
// pixels' deviations.
template <int V>
inline void normalise(int64_t channels, bool centred, float* panel, float eps = 1e-5f,
                      Vec* deviation = nullptr) {
  Vec mean[V] = {}, scale[V] = {};
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) mean[v] += load(panel + c * PANEL + v * L);
  for (int v = 0; v < V; ++v) mean[v] = mean[v] / float(channels);
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      const Vec distance = load(panel + c * PANEL + v * L) - mean[v];
      scale[v] += distance * distance;
    }
  for (int v = 0; v < V; ++v) {
    scale[v] = 1.0f / vsqrt(scale[v] / float(channels) + eps);
    if (!centred) mean[v] = Vec{};
    if (deviation) deviation[v] = scale[v];
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      float* to = panel + c * PANEL + v * L;
      store(to, (load(to) - mean[v]) * scale[v]);
    }
}

// to = panel * gain + offset, by channels.
template <int V>
inline void scale_and_shift(int64_t channels, const float* panel, const float* gain, const float* offset,
                            float* to) {
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v)
      store(to + c * PANEL + v * L, load(panel + c * PANEL + v * L) * gain[c] + offset[c]);
}

// How far the taps reach, 0 or more each way.
struct Reach {
  int64_t above = 1, below = 1, left = 1, right = 1;
};

// The size of the images whose rows are worked on as one, so that short ones fill vectors: `flat` is then how
// many pixels a row had. Elsewhere it is 0.
inline MirlSize flattened(const MirlSize& s) {
  if (L < 16 || !s.flat) return {s.batch, s.channels, s.height, s.width, 0};
  return {s.batch, s.channels, 1, s.height * s.width, s.width};
}

// What one task computes, rows top .. bottom of columns x0 .. x1 of item b, and the columns that it reads.
struct Part {
  int64_t task, b, x0, x1, top, bottom, first, last;
};

struct Strips {
  MirlSize size;   // of what is computed
  int64_t hidden;  // channels in the ring
  Reach reach;
  int64_t source_height, source_width;  // of what the ring is filled with; zeros outside
  int64_t across = 1;                   // strips
  int64_t width = 1;                    // columns of a strip
  int64_t down = 1;   // parts that the rows are cut into, each of which fills halos of its own
  int64_t step = 1;   // rows of the image done at once: several where they are short
  int64_t slots = 3;  // rows in the ring
  int64_t pitch = 0, hidden_stride = 0,
          margin = 16;  // columns before a row of the ring: the left halo ends there

  Strips(const MirlSize& s, int64_t hidden, int64_t threads)
      : Strips(s, hidden, threads, s.flat ? Reach{0, 0, s.flat + 1, s.flat + 1} : Reach{}, s.height,
               s.width) {}

  Strips(const MirlSize& s, int64_t hidden, int64_t threads, const Reach& reach, int64_t source_height,
         int64_t source_width)
      : size(s), hidden(hidden), reach(reach), source_height(source_height), source_width(source_width) {
    const int64_t rows = reach.above + 1 + reach.below, sideways = reach.left + reach.right;
    margin = round_up(std::max<int64_t>(1, std::max(reach.left, reach.right)), 16);
    // A group costs its vectors and some more; a strip that takes more than half of the second-level cache,
    // through which the image passes too, costs a little, halos and small groups cost much.
    auto groups = [](int64_t columns) {
      const int64_t n = (columns + L - 1) / L;
      return n + 0.75 * double((n + WIDE - 1) / WIDE);
    };
    double best = 1e30;
    for (int64_t n = 1; n <= (s.flat ? 1 : (s.width + 15) / 16); ++n) {
      const int64_t w = (s.width + n - 1) / n, computed = n == 1 ? w : w + sideways;
      const double floats = double(hidden * rows * (round_up(computed, L) + margin));
      const double kept = floats / double(mirl::second_level_floats());
      const double cost = double(n) * (groups(computed) + groups(w)) * (1 + 0.1 * std::max(0.0, kept - 0.5));
      if (cost < best) best = cost, across = n, width = w;
    }
    across = (s.width + width - 1) / width;
    // Where taps reach behind a row of the ring, they meet the next one's margin, which is zero.
    const int64_t whole = std::max(width, std::min(width + reach.right, source_width));
    const int64_t computed = round_up(across == 1 ? whole : width + sideways, L);
    step = std::max<int64_t>(1, std::min(s.height, PANEL / computed));
    slots = step + rows - 1;
    pitch = round_up(computed + margin, 16);
    hidden_stride = slots * pitch + margin;
    if (hidden_stride / 16 % 2 == 0)
      hidden_stride += 16;  // an odd number of cache lines: channels meet in no set
    best = 1e30;
    for (int64_t n = 1; n <= std::max<int64_t>(1, std::min(4 * threads, s.height / 4)); ++n) {
      const int64_t turns = (s.batch * across * n + threads - 1) / threads;
      const double cost = double(turns) * (double((s.height + n - 1) / n) + double(rows - 1));
      if (cost < best) best = cost, down = n;
    }
  }

  int64_t tasks() const { return across * down * size.batch; }

  Part part(int64_t task) const {
    Part p;
    p.task = task, p.b = task / (across * down);
    p.x0 = task % across * width, p.x1 = std::min(p.x0 + width, size.width);
    p.first = std::max<int64_t>(p.x0 - reach.left, 0);
    p.last = std::max(p.first, std::min(p.x1 + reach.right, source_width));
    const int64_t i = task / across % down;
    p.top = size.height * i / down, p.bottom = size.height * (i + 1) / down;
    return p;
  }
};

// A group of vectors that the ring is to be filled with: hidden channel h of vector v goes to to[v] + h *
// hidden_stride, where what is no pixel must be zero, as the padding is (`put`).
struct Filling {
  const Part& part;
  int64_t b, y, x;  // the vectors are at row y + at[v].row, column x + at[v].column
  const Place* at;
  int64_t n;
  float* to[WIDE];
  float* panel;  // the filler's scratch memory
  // The group that comes next, the same way, as far as it is known.
  int64_t next_y, next_n;
  const Place* next_at;
  bool whole;  // every vector is

  void put(int64_t h, int64_t hidden_stride, int64_t begin, int64_t width, const Vec* values) const {
    for (int64_t v = 0; v < width; ++v)
      store(to[begin + v] + h * hidden_stride, whole ? values[v] : only(values[v], at[begin + v].valid));
  }
};

// A step of a strip as its consumer sees it: rows y .. y + count of columns x0 .. x1 of item b are due, and
// the ring holds their hidden rows with those above and below.
struct Step {
  int64_t task, b, y, count, x0, x1;
  bool first, last;     // of its task
  int64_t slot;         // of hidden row y - reach.above
  const float* hidden;  // column x0 of slot 0 of channel 0
  float* extra;         // the consumer's scratch memory
};

// Some items of a batch.
struct Items {
  int64_t first, count;
};

// Runs every strip of these items: fill(Filling) for what the ring wants, consume(Step) for what it then
// allows.
template <class Fill, class Consume>
void run_strips(const Strips& s, const Items& items, int64_t panel_floats, int64_t extra, int64_t threads,
                Fill fill, Consume consume) {
  const int64_t per_item = s.across * s.down;
  panel_floats = round_up(panel_floats, 16);
  auto task = [&](int64_t i) {
    const int64_t t = items.first * per_item + i;
    const Part part = s.part(t);
    const int64_t b = part.b, x0 = part.x0, x1 = part.x1, top = part.top, bottom = part.bottom;
    const int64_t first = part.first, last = part.last;
    const int64_t ring = s.hidden * s.hidden_stride + s.margin;
    float* panel = mirl::scratch(panel_floats + ring + extra);
    float *hidden = panel + panel_floats, *own = hidden + ring;
    std::memset(hidden, 0, sizeof(float) * ring);
    const std::vector<Place> all = places(s.slots, last - first);
    const int64_t per_row = (last - first + L - 1) / L;

    // Hidden rows y .. y + count into the ring from `slot` on; zero outside the image, as the padding is.
    auto clear = [&](int64_t slot) {
      for (int64_t h = 0; h < s.hidden; ++h)
        std::memset(hidden + h * s.hidden_stride + slot % s.slots * s.pitch, 0, sizeof(float) * s.pitch);
    };
    auto fill_rows = [&](int64_t y, int64_t count, int64_t slot) {
      for (; count && y < 0; ++y, --count, ++slot) {
      }  // zero from the beginning
      const int64_t inside = std::max<int64_t>(0, std::min(count, s.source_height - y)),
                    vectors = inside * per_row;
      grouped(vectors, [&](int64_t from, int64_t n) {
        Filling f{part,
                  b,
                  y,
                  first,
                  all.data() + from,
                  n,
                  {},
                  panel,
                  y,
                  std::min(n, vectors - from - n),
                  all.data() + from + n,
                  true};
        for (int64_t v = 0; v < n; ++v)
          f.whole = f.whole && f.at[v].valid == L,
          f.to[v] = hidden + (slot + f.at[v].row) % s.slots * s.pitch + s.margin + f.at[v].column;
        if (f.next_n == 0)
          f.next_y = std::min(y + s.step, s.source_height - inside), f.next_n = n, f.next_at = all.data();
        fill(f);
      });
      for (int64_t i = inside; i < count; ++i) clear(slot + i);
    };

    const int64_t ahead = s.reach.above + s.reach.below;
    int64_t slot = 0;
    for (int64_t y = top; y < bottom; y += s.step) {
      const int64_t count = std::min(s.step, bottom - y);
      if (y == top) fill_rows(y - s.reach.above, ahead + count, 0);
      else fill_rows(y + s.reach.below, count, slot + ahead);
      consume(Step{t, b, y, count, x0, x1, y == top, y + count == bottom, slot,
                   hidden + s.margin + x0 - first, own});
      slot = (slot + count) % s.slots;
    }
  };
  mirl::parallel(items.count * per_item, threads, task);
}
template <class Fill, class Consume>
void run_strips(const Strips& s, int64_t panel_floats, int64_t extra, int64_t threads, Fill fill,
                Consume consume) {
  run_strips(s, Items{0, s.size.batch}, panel_floats, extra, threads, fill, consume);
}

// A filler: the layer norm of x, its gain and offset where they are not part of the product, then a product;
// panel_floats is channels * PANEL.
inline auto fill_normalised(const Strips& s, const MirlImage& x, const MirlRows& pointwise, bool centred,
                            float eps = 1e-5f, const float* gain = nullptr, const float* offset = nullptr) {
  return [&s, &x, &pointwise, centred, eps, gain, offset](const Filling& f) {
    const int64_t channels = s.size.channels;
    with_vectors(f.n, [&](auto n) {
      gather<n>(x, f.b, channels, f.y, f.x, f.at, f.panel);
      normalise<n>(channels, centred, f.panel, eps);
      if (gain) scale_and_shift<n>(channels, f.panel, gain, offset, f.panel);
    });
    Fetch next(x, f.b, channels, f.next_y, f.x, f.next_at, f.next_n, s.hidden);
    product(pointwise, f.panel, f.n, [&](int64_t h, int64_t begin, auto width, const Vec* sums) {
      if (begin == 0) next.template share<0>();
      f.put(h, s.hidden_stride, begin, width, sums);
    });
  };
}

// An image with zeros around it, or only `slots` rows of it, each in the place of the one that many rows
// above.
struct Rows {
  MirlImage image;
  int64_t slots = 0;

  int64_t slot(int64_t y) const { return slots ? (y + slots) % slots : y; }
  float* at(int64_t b, int64_t y, int64_t x) const { return image.at(b, 0, slot(y), x); }  // of channel 0
};

// Where n vectors of pixels lie that taps are applied to: those of channel 0, and in which slot their first
// row is. Worked out once for all channels, as a division takes as long as ten vectors' products.
struct Tapped {
  const float* first[WIDE];
  int64_t slot[WIDE], stride;  // from one channel to the next

  // In the ring.
  Tapped(const Strips& s, const Step& step, const Place* at, int64_t n) : stride(s.hidden_stride) {
    for (int64_t v = 0; v < n; ++v)
      first[v] = step.hidden + at[v].column, slot[v] = (step.slot + at[v].row) % s.slots;
  }
  // In an image that has zeros around it, or in as many of its rows as there is room for.
  Tapped(const Rows& rows, int64_t b, int64_t y, int64_t x, const Place* at, int64_t n)
      : stride(rows.image.channel) {
    for (int64_t v = 0; v < n; ++v) {
      first[v] =
          rows.slots ? rows.image.at(b, 0, 0, x + at[v].column) : rows.at(b, y + at[v].row, x + at[v].column);
      slot[v] = rows.slots ? rows.slot(y + at[v].row - 1) : 0;
    }
  }
};

// The surviving 3x3 taps of each hidden channel, as offsets into the ring, for every slot that their first
// row may have.
struct Taps {
  const MirlRows rows;
  std::vector<int32_t> offset;
  int64_t count;
  // Where rows follow each other without zeros between them: by a tap's column, the lanes that have a
  // neighbour there.
  bool flat = false;
  uint16_t within[3];

  Taps(const MirlRows& dwconv, const Strips& s) : rows(dwconv), count(dwconv.start[dwconv.rows]) {
    if (s.size.flat) neighbours(s.size.flat, s.size.flat);
    else in_slots(s.slots, s.pitch);
  }

  // Those of the rows of an image; `flat` as in MirlSize.
  Taps(const MirlRows& dwconv, const Rows& image, int64_t flat)
      : rows(dwconv), count(dwconv.start[dwconv.rows]) {
    if (image.slots) in_slots(image.slots, image.image.row);
    else neighbours(flat ? flat : image.image.row, flat);
  }

  // Whether a channel has all nine taps, which `nine` is for. Vectors that do not begin where cache lines do
  // take long to load where they are as long as these, so that those on both sides are put together from what
  // lies there.
  static bool complete(const MirlRows& rows, int64_t channel) {
    return L == 16 && rows.start[channel + 1] - rows.start[channel] == 9;
  }

  // use(tap, vector, pixels) for V vectors of a row of pixels, as `panel` takes them.
  template <int V, bool FLAT, class Use>
  __attribute__((always_inline)) void nine([[maybe_unused]] int64_t channel, [[maybe_unused]] int64_t slot,
                                           [[maybe_unused]] const float* in,
                                           [[maybe_unused]] Use&& use) const {
#if MIRL_LANES == 16
    const int32_t* centre = offset.data() + slot * count + rows.start[channel] + 1;
#pragma GCC unroll 3
    for (int y = 0; y < 3; ++y) {
      const float* p = in + centre[3 * y];
      Vec x[V + 2];
      for (int v = FLAT; v < V + 2 - FLAT; ++v) x[v] = load(p + (v - 1) * L);
      for (int v = 0; v < V; ++v) {
        use(3 * y, v, FLAT ? one_before(x[v + 1], within[0]) : one_before(x[v], x[v + 1]));
        use(3 * y + 1, v, x[v + 1]);
        use(3 * y + 2, v, FLAT ? one_behind(x[v + 1], within[2]) : one_behind(x[v + 1], x[v + 2]));
      }
    }
#endif
  }

  // What tap k, whose offset is part of p, meets there.
  template <bool FLAT>
  Vec pixels(int64_t k, const float* p) const {
    return FLAT ? load_some(p, within[rows.entry[k].column() % 3]) : load(p);
  }

  // f(std::bool_constant<flat>): loops that leave it open to run time are slower.
  template <class F>
  __attribute__((always_inline)) void with_flat(F&& f) const {
    if (flat) f(std::true_type{});
    else f(std::false_type{});
  }

  // What those of a channel give for V vectors of a row, from the v-th on.
  template <int V>
  void panel(int64_t channel, const Tapped& from, int64_t v, Vec* sums) const {
    panel<V>(channel, from.slot[v], from.first[v] + channel * from.stride, sums);
  }

  // Both halves of pair j of `pairs`: the ring's hidden channels are all first halves, then all second ones.
  template <int V>
  void pair(int64_t j, int64_t pairs, const Tapped& from, int64_t v, Vec* left, Vec* right) const {
    panel<V>(j, from, v, left);
    panel<V>(pairs + j, from, v, right);
  }

 private:
  // V vectors of a channel, from `in` on in each slot; the taps' first row is in slot `slot`.
  template <int V>
  void panel(int64_t channel, int64_t slot, const float* in, Vec* sums) const {
    with_flat([&](auto FLAT) {
      Vec own[V];  // in registers, as `sums` might not be
      for (int v = 0; v < V; ++v) own[v] = all(rows.bias ? rows.bias[channel] : 0.0f);
      if (complete(rows, channel)) {
        const MirlEntry* entry = rows.entry + rows.start[channel];
        nine<V, FLAT>(channel, slot, in, [&](int tap, int v, Vec x) { own[v] += entry[tap].value * x; });
      } else {
        for (int32_t k = rows.start[channel], end = rows.start[channel + 1]; k < end; ++k) {
          const float* p = in + offset[slot * count + k];
          const Vec w = all(rows.entry[k].value);
          for (int v = 0; v < V; ++v) own[v] += w * pixels<FLAT>(k, p + v * L);
        }
      }
      for (int v = 0; v < V; ++v) sums[v] = own[v];
    });
  }

  void in_slots(int64_t slots, int64_t pitch) {
    for (int64_t slot = 0; slot < slots; ++slot)
      for (int64_t k = 0; k < count; ++k)
        offset.push_back(
            int32_t((slot + rows.entry[k].column() / 3) % slots * pitch + rows.entry[k].column() % 3 - 1));
  }
  void neighbours(int64_t row, int64_t columns) {
    for (int64_t k = 0; k < count; ++k)
      offset.push_back(int32_t((rows.entry[k].column() / 3 - 1) * row + rows.entry[k].column() % 3 - 1));
    if (!columns) return;
    flat = true;
    for (int64_t x = -1; x <= 1; ++x) {
      within[x + 1] = 0;
      for (int64_t i = 0; i < L; ++i)
        if (i % columns + x >= 0 && i % columns + x < columns) within[x + 1] |= 1 << i;
    }
  }
};

}  // namespace MIRL_ISA
