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
inline std::vector<Span> spans(const int32_t* index, int64_t count, const MirlMdta& a) {
  const int64_t per_head = a.size.channels / a.heads;
  std::vector<Span> found;
  for (int64_t h = 0, i = 0; h < a.heads; ++h) {
    const int64_t first = i;
    while (i < count && index[i] / per_head == h) ++i;
    found.push_back({first, i});
  }
  return found;
}

// Which positions of the live q, k and v are whose, and what pass one sums up over the pixels: a Gram matrix
// for each head, its k columns padded to whole vectors, then the squared norms of q and of k.
struct Layout {
  int64_t per_head, gram = 0, norms;
  std::vector<Span> q, k, v;  // of each head
  std::vector<int64_t> start,
      wide;                    // of each head's Gram matrix: its place among the sums, its padded columns
  std::vector<int64_t> place;  // of each channel's q, or -1

  explicit Layout(const MirlMdta& a)
      : per_head(a.size.channels / a.heads), norms(a.q_count + a.k_count), q(spans(a.q_index, a.q_count, a)),
        k(spans(a.k_index, a.k_count, a)), v(spans(a.v_index, a.v_count, a)), place(a.size.channels, -1) {
    for (int64_t h = 0; h < a.heads; ++h) {
      start.push_back(gram);
      wide.push_back(turned(k[h].size()));
      gram += q[h].size() * wide[h];
    }
    for (int64_t i = 0; i < a.q_count; ++i) place[a.q_index[i]] = i;
  }
  int64_t widest() const { return *std::max_element(wide.begin(), wide.end()); }
  int64_t sums() const { return gram + norms; }
};

// Where pass one leaves v and pass two finds it: the live channels of an image row together.
inline MirlImage v_in_scratch(const MirlMdta& a) {
  const int64_t channel = padded(a.size.width), row = a.v_count * channel;
  return {a.scratch, a.size.height * row, channel, row};
}

inline std::vector<double> pass_one(const MirlMdta& a, const Layout& layout) {
  const int64_t qk = a.q_count + a.k_count;
  const Strips s(a.size, qk + a.v_count, a.sums ? TRAINING_TASKS : a.threads);
  const MirlImage v_image = v_in_scratch(a);
  const MirlRows qkv = a.qkv->view();
  const Taps taps(a.dwconv->view(), s);
  std::vector<double> partial(s.tasks() * layout.sums(), 0.0);
  // A thread's own: q and k of a panel, k transposed, and the sums in float, which go to those in double in
  // time.
  const int64_t transposed = PANEL * turned_apart(layout.widest()), norms = round_up(qk, L) * L;
  const int64_t extra = qk * PANEL + transposed + layout.gram + norms + 1;
  run_strips(s, a.size.channels * PANEL, extra, a.threads,
             fill_normalised(s, a.x, qkv, a.centred, 1e-5f, a.gain, a.offset), [&](const Step& step) {
               float *q = step.extra, *k = q + a.q_count * PANEL, *kt = q + qk * PANEL,
                     *gram = kt + transposed, *norm = gram + layout.gram;
               float& summed = norm[norms];  // pixels
               if (step.first) std::memset(kt, 0, sizeof(float) * (transposed + layout.gram + norms + 1));
               grouped(step.count, step.x1 - step.x0, [&](const Place* at, int64_t n) {
                 const Tapped from(s, step, at, n);
                 float* v_to[WIDE];
                 for (int64_t v = 0; v < n; ++v)
                   v_to[v] = v_image.at(step.b, 0, step.y + at[v].row, step.x0 + at[v].column);
                 Fetch to_write(v_image, step.b, a.v_count, step.y, step.x0, at, n, qk);
                 auto each = [&](int64_t j, auto emit) {
                   runs<4>(at, n, [&](int64_t v, auto few) {
                     Vec sums[few];
                     taps.panel<few>(j, from, v, sums);
                     for (int i = 0; i < few; ++i) emit(v + i, sums[i]);
                   });
                 };
                 for (int64_t j = 0; j < qk; ++j) {
                   to_write.share<1>();
                   Vec squares = load(norm + j * L);
                   each(j, [&](int64_t v, Vec value) {
                     if (at[v].valid < L) value = only(value, at[v].valid);
                     squares += value * value;
                     store(q + j * PANEL + v * L, value);
                   });
                   store(norm + j * L, squares);
                 }
                 for (int64_t j = 0; j < a.v_count; ++j)
                   each(qk + j, [&](int64_t v, const Vec& value) {
                     store(v_to[v] + j * v_image.channel, value, at[v]);
                   });
                 for (int64_t h = 0; h < a.heads; ++h) {
                   const int64_t wide = layout.wide[h];
                   turn_panel(k + layout.k[h].first * PANEL, layout.k[h].size(), n, kt);
                   add_gram(q + layout.q[h].first * PANEL, layout.q[h].size(), kt, wide, n * L,
                            gram + layout.start[h]);
                 }
               });
               summed += float(step.count * (step.x1 - step.x0));
               if (summed < 1024 && !step.last) return;
               double *total = partial.data() + step.task * layout.sums(), *total_norms = total + layout.gram;
               for (int64_t i = 0; i < layout.gram; ++i) total[i] += gram[i];
               for (int64_t j = 0; j < qk; j += L) {
                 Vec block[L];
                 std::memcpy(block, norm + j * L, sizeof block);
                 const Vec sum = sums(block);
                 for (int64_t i = 0; i < std::min(L, qk - j); ++i) total_norms[j + i] += sum[i];
               }
               std::memset(gram, 0, sizeof(float) * (layout.gram + norms + 1));
             });
  const int64_t tasks = s.tasks() / a.size.batch;  // of one item, added up in order
  std::vector<double> total(a.size.batch * layout.sums(), 0.0);
  for (int64_t b = 0; b < a.size.batch; ++b)
    for (int64_t t = 0; t < tasks; ++t)
      for (int64_t i = 0; i < layout.sums(); ++i)
        total[b * layout.sums() + i] += partial[(b * tasks + t) * layout.sums() + i];
  return total;
}

// The reciprocals of the norms of q and k, each at least 1e-12.
inline std::vector<double> reciprocal_norms(const Layout& layout, const double* sums) {
  std::vector<double> found(sums + layout.gram, sums + layout.sums());
  for (double& norm : found) norm = 1 / std::max(std::sqrt(norm), 1e-12);
  return found;
}

// Row `channel` of the softmax, over every k of its head: a dead one has a logit of 0, and its exp(0) = 1 is
// part of the denominator.
inline void softmax_row(const MirlMdta& a, const Layout& layout, const double* sums,
                        const double* reciprocals, int64_t channel, std::vector<double>& weight) {
  const int64_t h = channel / layout.per_head, q = layout.place[channel];
  weight.assign(layout.per_head, 0.0);
  if (q >= 0) {
    const double* row = sums + layout.start[h] + (q - layout.q[h].first) * layout.wide[h];
    for (int64_t k = layout.k[h].first; k < layout.k[h].last; ++k)
      weight[a.k_index[k] - h * layout.per_head] =
          row[k - layout.k[h].first] * reciprocals[q] * reciprocals[a.q_count + k] * a.temperature[h];
  }
  const double most = *std::max_element(weight.begin(), weight.end());
  double denominator = 0;
  for (double& w : weight) denominator += w = std::exp(w - most);
  for (double& w : weight) w /= denominator;
}

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

// A dense matrix in the form that `product` takes.
struct Dense {
  int64_t count, columns;
  std::vector<float> values;

  Dense(int64_t rows, int64_t columns)
      : count(rows), columns(columns), values(round_up(rows, 4) * columns + 1) {}  // never null
  float& at(int64_t r, int64_t c) { return values[(r / 4 * columns + c) * 4 + r % 4]; }
  MirlRows rows(const float* bias) const { return {count, columns, nullptr, nullptr, bias, values.data()}; }
};

// The matrices that pass two applies to v: one for each head, or, where that is less work for all pixels, one
// for all, project_out composed with the attention. (A sparse product takes nearly twice as long as a dense
// one.)
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
  explicit Attention(const MirlMdta& a)
      : a(a), layout(a), project_out(a.project_out->view()), v_image(v_in_scratch(a)),
        channels(a.size.channels), per_head(layout.per_head) {
    const std::vector<double> total = pass_one(a, layout);
    if (a.sums) std::copy(total.begin(), total.end(), a.sums);
    int64_t by_head = 0;
    for (const Span& v : layout.v) by_head += per_head * v.size();
    const int64_t after = project_out.dense ? channels * channels : project_out.start[channels] * 2;
    const int64_t composing = project_out.start[channels] * a.v_count / a.heads,
                  pixels = a.size.height * a.size.width;
    composed = channels * a.v_count + composing / pixels <= by_head + after;
    for (int64_t b = 0; b < a.size.batch; ++b) {
      if (composed) matrices.emplace_back(channels, a.v_count);
      for (int64_t h = 0; h < a.heads && !composed; ++h) matrices.emplace_back(per_head, layout.v[h].size());
    }
    std::vector<Weights> attention(a.size.batch, Weights(layout, channels));
    auto soften = [&](int64_t t) {
      const int64_t b = t / a.heads, h = t % a.heads;
      const double* sums = total.data() + b * layout.sums();
      const std::vector<double> reciprocals = reciprocal_norms(layout, sums);
      std::vector<double> weight;
      for (int64_t c = h * per_head; c < (h + 1) * per_head; ++c) {
        softmax_row(a, layout, sums, reciprocals.data(), c, weight);
        attention[b].set(a, layout, c, weight);
        for (int64_t v = 0; v < layout.v[h].size() && !composed; ++v)
          matrices[t].at(c - h * per_head, v) = attention[b].row(c)[v];
      }
    };
    mirl::parallel(a.size.batch * a.heads, a.threads, soften);
    const int64_t parts = (channels + 3) / 4;
    auto compose = [&](int64_t t) {
      const int64_t b = t / parts, first = t % parts * 4;
      const int64_t stride = a.v_count + L;
      std::vector<float> rows(4 * stride);
      attention[b].compose(
          layout, project_out, first, std::min(first + 4, channels),
          [&](int64_t r, int64_t v, Vec sum) { store(&rows[(r - first) * stride + v], sum); });
      float* to = &matrices[b].at(first, 0);
      for (int64_t v = 0; v < a.v_count; ++v)
        for (int64_t i = 0; i < 4; ++i) to[4 * v + i] = rows[i * stride + v];
    };
    if (composed) mirl::parallel(a.size.batch * parts, a.threads, compose);
  }

  int64_t scratch_floats() const { return (channels + a.v_count) * PANEL; }

  // Pass two for n vectors, at y + at[v].row and x + at[v].column: emits what is to be added to x. `next_*`
  // say where it goes on, whose pixels are asked for meanwhile.
  template <class Emit>
  void apply(int64_t b, int64_t y, int64_t x, const Place* at, int64_t n, int64_t next_y,
             const Place* next_at, int64_t next_n, float* scratch, Emit&& emit) const {
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
      with_vectors(n, [&](auto wide) { dense_panel<wide>(matrix.rows(bias), in, stride, emit); });
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
