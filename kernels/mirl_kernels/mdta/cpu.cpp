// MDTA in two passes, exact in bounded memory. The Gram matrix of q and k runs over all pixels: pass one computes
// q, k and v in strips, accumulates the Gram matrix and the norms in double, and stores v alone. Pass two applies
// the softmax and project_out to v; both are linear, so they are one matrix where that is the cheaper way.
#include "strips.h"

namespace MIRL_ISA {
namespace {

constexpr int ROWS = 4, COLUMNS = L == 16 ? 4 : 3;  // of a register tile

// sums[i * N + j] = <a_i, b_j> over n pixels (a multiple of L).
template <int M, int N>
void dot_tile(const float* a, const float* b, int64_t stride, int64_t n, float* out) {
  constexpr int padded = (M * N + L - 1) / L * L;
  Vec acc[padded] = {};
  for (int64_t p = 0; p < n; p += L) {
    Vec right[N];
    for (int j = 0; j < N; ++j) right[j] = load(b + j * stride + p);
    for (int i = 0; i < M; ++i) {
      const Vec left = load(a + i * stride + p);
      for (int j = 0; j < N; ++j) acc[i * N + j] += left * right[j];
    }
  }
  for (int i = 0; i < padded; i += L) store(out + i, sums(acc + i));
}

// gram[i * gram_stride + j] += <q_i, k_j> for m rows of q and n of k.
void add_gram(const float* q, int64_t m, const float* k, int64_t n, int64_t stride, int64_t pixels, double* gram,
              int64_t gram_stride) {
  float tile[(ROWS * COLUMNS + L - 1) / L * L];
  if (m < ROWS || n < COLUMNS) {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        dot_tile<1, 1>(q + i * stride, k + j * stride, stride, pixels, tile);
        gram[i * gram_stride + j] += tile[0];
      }
    return;
  }
  for (int64_t i = 0; i < m; i += ROWS)
    for (int64_t j = 0; j < n; j += COLUMNS) {
      const int64_t top = std::min(i, m - ROWS), left = std::min(j, n - COLUMNS);  // the last tiles overlap, unadded
      dot_tile<ROWS, COLUMNS>(q + top * stride, k + left * stride, stride, pixels, tile);
      for (int64_t u = i; u < top + ROWS; ++u)
        for (int64_t v = j; v < left + COLUMNS; ++v)
          gram[u * gram_stride + v] += tile[(u - top) * COLUMNS + v - left];
    }
}

// norms[i] += <a_i, a_i> for n rows.
void add_norms(const float* a, int64_t n, int64_t stride, int64_t pixels, double* norms) {
  for (int64_t i = 0; i < n; i += L) {
    Vec acc[L] = {};
    for (int64_t r = 0; r < std::min(L, n - i); ++r) {
      Vec even{}, odd{};
      const float* row = a + (i + r) * stride;
      int64_t p = 0;
      for (; p + 2 * L <= pixels; p += 2 * L) {
        const Vec x = load(row + p), y = load(row + p + L);
        even += x * x, odd += y * y;
      }
      if (p < pixels) {
        const Vec x = load(row + p);
        even += x * x;
      }
      acc[r] = even + odd;
    }
    const Vec total = sums(acc);
    for (int64_t r = 0; r < std::min(L, n - i); ++r) norms[i + r] += total[r];
  }
}

// out[r][p] = sum_c matrix[r][c] * in[c][p] for V vectors of pixels.
template <int M, int V>
void dense_tile(const float* matrix, int64_t columns, const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  Vec acc[M][V] = {};
  for (int64_t c = 0; c < columns; ++c) {
    Vec x[V];
    for (int v = 0; v < V; ++v) x[v] = load(in + c * in_stride + v * L);
    for (int i = 0; i < M; ++i) {
      const Vec w = all(matrix[i * columns + c]);
      for (int v = 0; v < V; ++v) acc[i][v] += w * x[v];
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) store(out + i * out_stride + v * L, acc[i][v]);
}

void dense(const float* matrix, int64_t rows, int64_t columns, const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS)
    dense_tile<ROWS, COLUMNS>(matrix + r * columns, columns, in, in_stride, out + r * out_stride, out_stride);
  for (; r < rows; ++r) dense_tile<1, COLUMNS>(matrix + r * columns, columns, in, in_stride, out + r * out_stride, out_stride);
}

// The live channels of one head within a list sorted by channel: positions [first, last).
struct Span {
  int64_t first, last;
  int64_t size() const { return last - first; }
};
Span span(const int32_t* index, int64_t count, int64_t from, int64_t to) {
  return {std::lower_bound(index, index + count, from) - index, std::lower_bound(index, index + count, to) - index};
}

// Sizes of the strips' sums: the Gram matrix (row q, column k of its head), then the squared norms of q and of k.
struct Sums {
  int64_t gram, norms;
  explicit Sums(const MirlMdta& a) : gram(a.q_count * (a.size.channels / a.heads)), norms(a.q_count + a.k_count) {}
  int64_t size() const { return gram + norms; }
};

// Where pass one leaves v and pass two finds it: the live channels of an image row together.
MirlImage v_in_scratch(const MirlMdta& a) {
  const int64_t channel = padded(a.size.width), row = a.v_count * channel;
  return {a.scratch, a.size.height * row, channel, row};
}

std::vector<double> pass_one(const MirlMdta& a) {
  const int64_t per_head = a.size.channels / a.heads, qk = a.q_count + a.k_count, live = qk + a.v_count;
  Strips s(a.size, live, qk, a.threads);
  const int64_t lined = s.lined(), stride = s.step_stride();
  const MirlImage v_image = v_in_scratch(a);
  s.extra = qk * stride;
  const Sums sizes(a);
  const Taps taps(a.dwconv, s.pitch);
  std::vector<double> partial(s.tasks() * sizes.size(), 0.0);
  run_strips(s, a.x, a.qkv, a.threads,
             [&](int64_t t, int64_t b, int64_t y, int64_t count, int64_t x0, int64_t x1, const float* hidden, float* extra) {
    const int64_t wide = x1 - x0;
    for (int64_t j = 0; j < live; ++j) {
      if (j < qk) fetch_rows(v_image, a.v_count, b, y, y + count, x0, x1, j, qk);
      for (int64_t i = 0; i < count; ++i) {
        const float* in = hidden + j * s.hidden_stride + i * s.pitch + 1;
        if (j >= qk) {
          taps.row(j, in, wide, v_image.at(b, j - qk, y + i, x0));
        } else {
          float* to = extra + j * stride + i * lined;
          taps.row(j, in, wide, to);
          std::memset(to + wide, 0, sizeof(float) * (lined - wide));
        }
      }
    }
    const float *q = extra, *k = extra + a.q_count * stride;
    double *gram = partial.data() + t * sizes.size(), *norms = gram + sizes.gram;
    for (int64_t h = 0; h < a.heads; ++h) {
      const Span qs = span(a.q_index, a.q_count, h * per_head, (h + 1) * per_head);
      const Span ks = span(a.k_index, a.k_count, h * per_head, (h + 1) * per_head);
      add_gram(q + qs.first * stride, qs.size(), k + ks.first * stride, ks.size(), stride, count * lined,
               gram + qs.first * per_head, per_head);
    }
    add_norms(extra, qk, stride, count * lined, norms);
  });
  const int64_t tasks = s.tasks() / a.size.batch;  // of one item, added up in order
  std::vector<double> total(a.size.batch * sizes.size(), 0.0);
  for (int64_t b = 0; b < a.size.batch; ++b)
    for (int64_t t = 0; t < tasks; ++t)
      for (int64_t i = 0; i < sizes.size(); ++i) total[b * sizes.size() + i] += partial[(b * tasks + t) * sizes.size() + i];
  return total;
}

// Row `channel` of the softmax, over every k of its head: a dead one has a logit of 0, and its exp(0) = 1 is part of
// the denominator.
void softmax_row(const MirlMdta& a, const double* total, int64_t channel, std::vector<double>& weight) {
  const int64_t per_head = a.size.channels / a.heads, h = channel / per_head;
  const double *q_norm = total + Sums(a).gram, *k_norm = q_norm + a.q_count;
  std::fill(weight.begin(), weight.end(), 0.0);
  const Span qs = span(a.q_index, a.q_count, channel, channel + 1);
  const Span ks = span(a.k_index, a.k_count, h * per_head, (h + 1) * per_head);
  if (qs.size()) {
    const double norm = std::max(std::sqrt(q_norm[qs.first]), 1e-12);
    for (int64_t k = ks.first; k < ks.last; ++k)
      weight[a.k_index[k] - h * per_head] = total[qs.first * per_head + k - ks.first] / norm /
                                            std::max(std::sqrt(k_norm[k]), 1e-12) * a.temperature[h];
  }
  const double most = *std::max_element(weight.begin(), weight.end());
  double denominator = 0;
  for (double& w : weight) denominator += w = std::exp(w - most);
  for (double& w : weight) w /= denominator;
}

}  // namespace

void mdta(const MirlMdta& a) {
  const int64_t channels = a.size.channels, width = a.size.width;
  const int64_t per_head = channels / a.heads;
  const std::vector<double> total = pass_one(a);
  std::vector<Span> vs(a.heads);
  for (int64_t h = 0; h < a.heads; ++h) vs[h] = span(a.v_index, a.v_count, h * per_head, (h + 1) * per_head);

  // The attention matrix: for each head, per_head rows of one column per live v of the head.
  std::vector<int64_t> at(a.heads + 1, 0);
  for (int64_t h = 0; h < a.heads; ++h) at[h + 1] = at[h] + per_head * vs[h].size();
  const int64_t whole = channels * a.v_count;
  // All of project_out times attention is one dense matrix, worth it where it does not undo the heads' sparsity.
  const bool composed = whole <= at[a.heads] + a.project_out.start[channels] * 3 / 2;
  std::vector<float> matrix(a.size.batch * (composed ? whole : at[a.heads]));
  std::vector<double> weight(per_head), attention(at[a.heads]), row(a.v_count);
  for (int64_t b = 0; b < a.size.batch; ++b) {
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t h = c / per_head;
      softmax_row(a, total.data() + b * Sums(a).size(), c, weight);
      for (int64_t v = vs[h].first; v < vs[h].last; ++v)
        attention[at[h] + c % per_head * vs[h].size() + v - vs[h].first] = weight[a.v_index[v] - h * per_head];
    }
    if (!composed) {
      std::copy(attention.begin(), attention.end(), matrix.begin() + b * at[a.heads]);
      continue;
    }
    for (int64_t r = 0; r < channels; ++r) {
      std::fill(row.begin(), row.end(), 0.0);
      for (int32_t k = a.project_out.start[r]; k < a.project_out.start[r + 1]; ++k) {
        const int64_t c = a.project_out.column[k], h = c / per_head;
        const double* from = attention.data() + at[h] + c % per_head * vs[h].size();
        for (int64_t v = 0; v < vs[h].size(); ++v) row[vs[h].first + v] += a.project_out.value[k] * from[v];
      }
      std::copy(row.begin(), row.end(), matrix.begin() + b * whole + r * a.v_count);
    }
  }

  // Whole rows at a time: short pieces of many planes would be fetched one by one.
  constexpr int64_t chunk = COLUMNS * L;
  const MirlImage v_image = v_in_scratch(a);
  const int64_t stride = padded(chunk), out_stride = padded(round_up(width, chunk));
  auto apply = [&](int64_t task) {
    const int64_t b = task / a.size.height, y = task % a.size.height;
    float *out = mirl::scratch(channels * out_stride + (channels + a.v_count) * stride), *mixed = out + channels * out_stride;
    float* last = mixed + channels * stride;  // the row's last pixels, with room behind them
    for (int64_t x = 0; x < width; x += chunk) {
      const int64_t n = std::min(chunk, width - x);
      const float* v = v_image.at(b, 0, y, x);
      int64_t v_stride = v_image.channel;
      if (n < chunk) {
        for (int64_t c = 0; c < a.v_count; ++c) std::memcpy(last + c * stride, v + c * v_stride, sizeof(float) * n);
        v = last, v_stride = stride;
      }
      if (composed) {
        dense(matrix.data() + b * whole, channels, a.v_count, v, v_stride, out + x, out_stride);
      } else {
        for (int64_t h = 0; h < a.heads; ++h)
          dense(matrix.data() + b * at[a.heads] + at[h], per_head, vs[h].size(), v + vs[h].first * v_stride, v_stride,
                mixed + h * per_head * stride, stride);
        rows(a.project_out, mixed, stride, out + x, out_stride, n, channels);
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      const float *from = a.x.at(b, c, y, 0), *add = out + c * out_stride;
      float* to = a.y.at(b, c, y, 0);
      for (int64_t i = 0; i < width; ++i) to[i] = from[i] + add[i];
    }
  };
  mirl::parallel(a.size.batch * a.size.height, a.threads, apply);
}

}  // namespace MIRL_ISA
