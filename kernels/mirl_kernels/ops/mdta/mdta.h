// MDTA in two passes, exact in bounded memory. The Gram matrix of q and k runs over all pixels: pass one
// computes q, k and v in strips, accumulates the Gram matrix and the norms in double, and stores v alone.
// Pass two applies the softmax and project_out to v; both are linear, so they are one matrix where that is
// the cheaper way.
#pragma once
#include "gram.h"
#include "strips.h"

namespace MIRL_ISA {

// The live channels of one head within a list sorted by head: positions [first, last).
struct Span {
  int64_t first, last;
  int64_t size() const { return last - first; }
};
std::vector<Span> spans(const int32_t* index, int64_t count, const MirlMdta& a);

// Which positions of the live q, k and v are whose, and what pass one sums up over the pixels: a Gram matrix
// for each head, its k columns padded to whole vectors, then the squared norms of q and of k.
struct Layout {
  int64_t per_head, gram = 0, norms;
  std::vector<Span> q, k, v;  // of each head
  std::vector<int64_t> start,
      wide;                    // of each head's Gram matrix: its place among the sums, its padded columns
  std::vector<int64_t> place;  // of each channel's q, or -1

  explicit Layout(const MirlMdta& a);
  int64_t widest() const { return *std::max_element(wide.begin(), wide.end()); }
  int64_t sums() const { return gram + norms; }
};

// Where pass one leaves v and pass two finds it: the live channels of an image row together.
inline MirlImage v_in_scratch(const MirlMdta& a) {
  const int64_t channel = padded(a.size.width), row = a.v_count * channel;
  return {a.scratch, a.size.height * row, channel, row};
}

// The reciprocals of the norms of q and k, each at least 1e-12.
std::vector<double> reciprocal_norms(const Layout& layout, const double* sums);

// Row `channel` of the softmax, over every k of its head: a dead one has a logit of 0, and its exp(0) = 1 is
// part of the denominator.
void softmax_row(const MirlMdta& a, const Layout& layout, const double* sums, const double* reciprocals,
                 int64_t channel, std::vector<double>& weight);

// Rows first .. last of a matrix, of them columns begin .. end, times those rows of `in`, `stride` apart:
// emit(row, j, Vec) for whole vectors up to `width`.
template <class Emit>
inline void times(const MirlRows& m, int64_t first, int64_t last, int64_t begin, int64_t end, const float* in,
                  int64_t stride, int64_t width, Emit&& emit) {
  if (m.dense) {
    constexpr Vec none[4] = {};
    auto tile = [&](int64_t r, int64_t j, auto n) {
      dense_tile<n>(m.dense + r * m.columns + 4 * begin, end - begin, in + j, stride, none, 1,
                    [&](int64_t i, const Vec* sums) {
                      for (int v = 0; v < n && r + i >= first && r + i < last; ++v)
                        emit(r + i, j + v * L, sums[v]);
                    });
    };
    for (int64_t r = first / 4 * 4; r < last; r += 4) {
      int64_t j = 0;
      for (; j + (TILE - 1) * L < width; j += TILE * L) tile(r, j, Vectors<TILE>{});
      for (; j < width; j += L) tile(r, j, Vectors<1>{});
    }
    return;
  }
  for (int64_t r = first; r < last; ++r) {
    auto before = [](const MirlEntry& e, int64_t column) { return e.column() < column; };
    const MirlEntry *from = m.entry + m.start[r], *to = m.entry + m.start[r + 1];
    from = std::lower_bound(from, to, begin, before), to = std::lower_bound(from, to, end, before);
    for (int64_t j = 0; j < width; j += L) {
      Vec sum{};
      for (const MirlEntry* e = from; e < to; ++e)
        sum += e->value * load(in + (e->column() - begin) * stride + j);
      emit(r, j, sum);
    }
  }
}

// An item's attention: a row for each channel, the weights of its head's live v, with zeros behind them.
struct Weights {
  int64_t stride = 0;
  std::vector<float> values;

  Weights(const Layout& layout, int64_t channels) {
    for (const Span& v : layout.v) stride = std::max(stride, round_up(v.size(), L));
    values.resize(channels * stride);
  }
  float* row(int64_t channel) { return values.data() + channel * stride; }
  const float* row(int64_t channel) const { return values.data() + channel * stride; }
  // By a row of the softmax.
  void set(const MirlMdta& a, const Layout& layout, int64_t channel, const std::vector<double>& weight) {
    const int64_t h = channel / layout.per_head;
    for (int64_t v = layout.v[h].first; v < layout.v[h].last; ++v)
      row(channel)[v - layout.v[h].first] = float(weight[a.v_index[v] - h * layout.per_head]);
  }
  // Rows first .. last of project_out composed with it, by all live v, with zeros behind them: emit(row, v,
  // Vec), in order.
  template <class Emit>
  void compose(const Layout& layout, const MirlRows& project_out, int64_t first, int64_t last,
               Emit&& emit) const {
    for (size_t h = 0; h < layout.v.size(); ++h) {
      const int64_t begin = h * layout.per_head,
                    at = layout.v[h].first;  // what lies behind a head is the next one's
      times(project_out, first, last, begin, begin + layout.per_head, row(begin), stride, layout.v[h].size(),
            [&](int64_t r, int64_t j, Vec sum) { emit(r, at + j, sum); });
    }
  }
};

// A matrix that is made for one call: whole, or in tiles (MirlRows) once `finish` was called.
struct Dense {
  int64_t count, columns;
  bool tiles;
  int64_t stride = round_up(columns, TILE_COLUMNS);
  std::vector<float> values;
  std::vector<int32_t> words;

  Dense(int64_t rows, int64_t columns, bool tiles = false)
      : count(rows), columns(columns), tiles(tiles),
        values(tiles ? round_up(rows, TILE_ROWS) * stride : round_up(rows, 4) * columns + 1) {}  // never null
  float& at(int64_t r, int64_t c) {
    return values[tiles ? r * stride + c : (r / 4 * columns + c) * 4 + r % 4];
  }
  void finish() {
    if (!tiles) return;
    words.resize(values.size() / 2 + 16);
    round_row(values.data(), values.size(), first_tile());
  }
  int32_t* first_tile() const {  // where a cache line begins
    return reinterpret_cast<int32_t*>(round_up(reinterpret_cast<int64_t>(words.data()), 64));
  }
  MirlRows rows(const float* bias) const {
    return {count, columns, nullptr, nullptr, bias, values.data(), nullptr, tiles ? first_tile() : nullptr};
  }
};

// The matrices that pass two applies to v: one for each head, or, where that is less work for all pixels, one
// for all, project_out composed with the attention (`mirl::mdta_is_composed`).
class Attention {
  const MirlMdta& a;
  const Layout layout;
  const MirlRows project_out;
  const MirlImage v_image;
  const int64_t channels, per_head;
  bool composed;
  std::vector<Dense> matrices;

 public:
  // Runs pass one.
  explicit Attention(const MirlMdta& a);

  int64_t scratch_floats() const { return (channels + a.v_count) * PANEL; }

  // Pass two for n vectors, at y + at[v].row and x + at[v].column: emits what is to be added to x. `next_*`
  // say where it goes on, whose pixels are asked for meanwhile.
  template <class Emit>
  void apply(int64_t b, int64_t y, int64_t x, const Place* at, int64_t n, int64_t next_y,
             const Place* next_at, int64_t next_n, float* scratch, Emit&& emit) const {
    enter(Phase::apply);
    float *mixed = scratch, *gathered = scratch + channels * PANEL;
    const float* v = v_image.at(b, 0, y + at->row, x + at->column);
    int64_t stride = v_image.channel;
    if (at[n - 1].row != at->row) {  // no stretch of memory
      for (int64_t i = 0; i < n; ++i)
        for (int64_t c = 0; c < a.v_count; ++c)
          store(gathered + c * PANEL + i * L, load(v_image.at(b, c, y + at[i].row, x + at[i].column)));
      v = gathered, stride = PANEL;
    }
    Fetch next(a.x, b, channels, next_y, x, next_at, next_n, channels);
    Fetch next_v(v_image, b, a.v_count, next_y, x, next_at, next_n, channels);
    auto put = [&](int64_t c, int64_t begin, auto width, const Vec* sums) {
      if (begin == 0) next.template share<0>(), next_v.template share<0>();
      emit(c, begin, width, sums);
    };
    auto dense = [&](const Dense& matrix, const float* bias, const float* in, auto emit) {
      dense_panel(matrix.rows(bias), in, stride, n, emit);
    };
    if (composed) return dense(matrices[b], project_out.bias, v, put);
    for (int64_t h = 0; h < a.heads; ++h)
      dense(matrices[b * a.heads + h], nullptr, v + layout.v[h].first * stride,
            [&](int64_t c, int64_t begin, auto width, const Vec* sums) {
              for (int i = 0; i < width; ++i)
                store(mixed + (h * per_head + c) * PANEL + (begin + i) * L, sums[i]);
            });
    product(project_out, mixed, n, put);
  }
};

}  // namespace MIRL_ISA
