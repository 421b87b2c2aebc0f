// How an image is worked through by ops whose taps reach over neighbouring pixels: cut into strips of
// columns, each of which runs down its rows, while the rows that the taps still need stay in a ring in the
// second-level cache. MDTA and GDFN begin alike (`FillNormalised`): layer norm, sparse 1x1, and the ring
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
std::vector<Place> places(int64_t rows, int64_t columns);

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

constexpr int TAPPED = L == 4 ? 8 : 4;  // vectors whose taps fit the registers

// f(v, Vectors<k>) for runs of at most MOST of n vectors, each within a row.
template <int MOST, class F>
inline void runs(const Place* at, int64_t n, F&& f) {
  for (int64_t v = 0; v < n;) {
    if (v + MOST <= n && at[v].row == at[v + MOST - 1].row) {
      f(v, Vectors<MOST>{}), v += MOST;
      continue;
    }
    if constexpr (MOST > 4)
      if (v + 4 <= n && at[v].row == at[v + 3].row) {
        f(v, Vectors<4>{}), v += 4;
        continue;
      }
    if constexpr (MOST > 2)
      if (v + 2 <= n && at[v].row == at[v + 1].row) {
        f(v, Vectors<2>{}), v += 2;
        continue;
      }
    if constexpr (MOST > 1) f(v, Vectors<1>{}), v += 1;
  }
}

inline Vec load(const float* p, const Place& at) { return at.valid == L ? load(p) : load(p, at.valid); }
inline void store(float* p, Vec v, const Place& at) {
  if (at.valid == L) store(p, v);
  else store(p, v, at.valid);
}

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows <= L, j < columns <= L.
void transpose_tile(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows,
                    int64_t columns);

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
  int64_t down = 1;                     // parts that the rows are cut into, each of which fills its halos
  int64_t step = 1;                     // rows of the image done at once: several where they are short
  int64_t slots = 3;                    // rows in the ring
  int64_t pitch = 0, hidden_stride = 0,
          margin = 16;  // columns before a row of the ring: the left halo ends there

  Strips(const MirlSize& s, int64_t hidden, int64_t threads)
      : Strips(s, hidden, threads, s.flat ? Reach{0, 0, s.flat + 1, s.flat + 1} : Reach{}, s.height,
               s.width) {}

  Strips(const MirlSize& s, int64_t hidden, int64_t threads, const Reach& reach, int64_t source_height,
         int64_t source_width);

  int64_t tasks() const { return across * down * size.batch; }

  Part part(int64_t task) const;
};

// A group of vectors that the ring is to be filled with: hidden channel h of vector v goes to to[v] + h *
// hidden_stride, where what is no pixel must be zero, as the padding is (`store_hidden`).
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

  void store_hidden(int64_t h, int64_t hidden_stride, int64_t begin, int64_t width, const Vec* values) const {
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

// A range of items of a batch.
struct Items {
  int64_t first, count;
};

// Something that can be called with an argument. It belongs to the caller and outlives the call that it is
// given to. (A parameter of this type keeps what takes it out of the translation units that call it.)
template <class Argument>
class FunctionRef {
  const void* object;
  void (*invoke)(const void*, const Argument&);

 public:
  template <class F>
  FunctionRef(const F& f)
      : object(&f),
        invoke([](const void* f, const Argument& argument) { (*static_cast<const F*>(f))(argument); }) {}
  void operator()(const Argument& argument) const { invoke(object, argument); }
};

// Runs every strip of a range of items: fill(Filling) for what the ring wants, consume(Step) for what it then
// allows.
void run_strips(const Strips& s, const Items& items, int64_t panel_floats, int64_t extra, int64_t threads,
                FunctionRef<Filling> fill, FunctionRef<Step> consume);
// The same for all items.
void run_strips(const Strips& s, int64_t panel_floats, int64_t extra, int64_t threads,
                FunctionRef<Filling> fill, FunctionRef<Step> consume);

// A filler: the layer norm of x, its gain and offset where they are not part of the product, then a product;
// panel_floats is channels * PANEL.
struct FillNormalised {
  const Strips& s;
  const MirlImage& x;
  const MirlRows pointwise;
  bool centred;
  float eps = 1e-5f;
  const float *gain = nullptr, *offset = nullptr;

  void operator()(const Filling& f) const;
};

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

  // Whether a channel has all nine taps, which `full_3x3` is for. Vectors that do not begin where cache lines
  // do take long to load where they are as long as these, so that those on both sides are put together from
  // what lies there.
  static bool complete(const MirlRows& rows, int64_t channel) {
    return L == 16 && rows.start[channel + 1] - rows.start[channel] == 9;
  }

  // use(tap, vector, pixels) for V vectors of a row of pixels, as `panel` takes them.
  template <int V, bool FLAT, class Use>
  __attribute__((always_inline)) void full_3x3([[maybe_unused]] int64_t channel,
                                               [[maybe_unused]] int64_t slot,
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
    return FLAT ? load_lanes(p, within[rows.entry[k].column() % 3]) : load(p);
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
      Vec total[V];  // in registers, as `sums` might not be
      for (int v = 0; v < V; ++v) total[v] = all(rows.bias ? rows.bias[channel] : 0.0f);
      if (complete(rows, channel)) {
        const MirlEntry* entry = rows.entry + rows.start[channel];
        full_3x3<V, FLAT>(channel, slot, in,
                          [&](int tap, int v, Vec x) { total[v] += entry[tap].value * x; });
      } else {
        for (int32_t k = rows.start[channel], end = rows.start[channel + 1]; k < end; ++k) {
          const float* p = in + offset[slot * count + k];
          const Vec w = all(rows.entry[k].value);
          for (int v = 0; v < V; ++v) total[v] += w * pixels<FLAT>(k, p + v * L);
        }
      }
      for (int v = 0; v < V; ++v) sums[v] = total[v];
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
