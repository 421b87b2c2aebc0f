// MDTA in two passes, exact in bounded memory. The Gram matrix of q and k runs over all pixels: pass one computes
// q, k and v in strips, accumulates the Gram matrix and the norms in double, and stores v alone. Pass two applies
// the softmax and project_out to v, pixel by pixel.
#include "strips.h"

namespace MIRL_ISA {
namespace {

// gram[i * gram_stride + j] += <q_i, k_j> over n pixels (a multiple of L, zeros where they do not count).
template <int M, int N>
void gram_tile(const float* q, const float* k, int64_t stride, int64_t n, double* gram, int64_t gram_stride) {
  Vec sums[M][N] = {};
  for (int64_t p = 0; p < n; p += L) {
    Vec right[N];
    for (int j = 0; j < N; ++j) right[j] = load(k + j * stride + p);
    for (int i = 0; i < M; ++i) {
      const Vec left = load(q + i * stride + p);
      for (int j = 0; j < N; ++j) sums[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) gram[i * gram_stride + j] += sum(sums[i][j]);
}

void gram_block(const float* q, int64_t m, const float* k, int64_t n, int64_t stride, int64_t pixels, double* gram,
                int64_t gram_stride) {
  for (int64_t i = 0; i < m; i += 4)
    for (int64_t j = 0; j < n; j += 4) {
      double* at = gram + i * gram_stride + j;
      const float *left = q + i * stride, *right = k + j * stride;
      if (m - i >= 4 && n - j >= 4) {
        gram_tile<4, 4>(left, right, stride, pixels, at, gram_stride);
        continue;
      }
      for (int64_t u = i; u < std::min(m, i + 4); ++u)
        for (int64_t v = j; v < std::min(n, j + 4); ++v)
          gram_tile<1, 1>(q + u * stride, k + v * stride, stride, pixels, gram + u * gram_stride + v, gram_stride);
    }
}

// out[r][p] = sum_c matrix[r][c] * in[c][p]: four rows by V vectors held in registers.
template <int M, int V>
void dense_tile(const float* matrix, int64_t columns, const float* in, int64_t stride, float* out) {
  Vec sums[M][V] = {};
  for (int64_t c = 0; c < columns; ++c) {
    Vec x[V];
    for (int v = 0; v < V; ++v) x[v] = load(in + c * stride + v * L);
    for (int i = 0; i < M; ++i) {
      const Vec w = all(matrix[i * columns + c]);
      for (int v = 0; v < V; ++v) sums[i][v] += w * x[v];
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) store(out + i * stride + v * L, sums[i][v]);
}

void dense(const float* matrix, int64_t rows, int64_t columns, const float* in, int64_t stride, float* out, int64_t pixels) {
  for (int64_t p = 0; p < pixels; p += 4 * L) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) dense_tile<4, 4>(matrix + r * columns, columns, in + p, stride, out + r * stride + p);
    for (; r < rows; ++r) dense_tile<1, 4>(matrix + r * columns, columns, in + p, stride, out + r * stride + p);
  }
}

// The live channels of one head within a list sorted by channel: positions [first, last).
struct Span {
  int64_t first, last;
};
Span span(const int32_t* index, int64_t count, int64_t from, int64_t to) {
  return {std::lower_bound(index, index + count, from) - index, std::lower_bound(index, index + count, to) - index};
}

}  // namespace

void mdta(const MirlMdta& a) {
  const int64_t channels = a.size.channels, plane = a.size.height * a.size.width, per_head = channels / a.heads;
  const int64_t live = a.q_count + a.k_count + a.v_count;
  Strips s(a.size, live, a.q_count + a.k_count, a.threads);
  const int64_t stride = s.flat_stride();
  s.extra = (a.q_count + a.k_count + 1) * stride;
  const int64_t sums = a.q_count * per_head + a.q_count + a.k_count;  // Gram (row q, column k of its head), then norms
  std::vector<double> partial(s.tasks() * sums, 0.0);

  run_strips(s, a.x, a.qkv, a.threads,
             [&](int64_t t, int64_t b, int64_t y, int64_t count, int64_t x0, int64_t x1, const float* hidden, float* extra) {
    const int64_t pixels = count * s.pitch, whole = round_up(pixels, L), wide = x1 - x0;
    for (int64_t j = 0; j < live; ++j) {
      const bool is_v = j >= a.q_count + a.k_count;
      float* to = extra + (is_v ? a.q_count + a.k_count : j) * stride;
      for (int64_t p = 0; p < pixels; p += L) {
        Vec u[1];
        taps<1>(a.dwconv, j, hidden + j * s.hidden_stride + p, s.pitch, u);
        store(to + p, u[0]);
      }
      if (is_v) {
        float* v = a.scratch + (b * a.v_count + j - a.q_count - a.k_count) * plane + y * a.size.width + x0;
        for (int64_t i = 0; i < count; ++i) std::memcpy(v + i * a.size.width, to + i * s.pitch + 1, sizeof(float) * wide);
      } else {  // the halo belongs to the neighbours
        for (int64_t i = 0; i < count; ++i) {
          to[i * s.pitch] = 0;
          for (int64_t c = wide + 1; c < s.pitch; ++c) to[i * s.pitch + c] = 0;
        }
        for (int64_t p = pixels; p < whole; ++p) to[p] = 0;
      }
    }
    const float *q = extra, *k = extra + a.q_count * stride;
    double *gram = partial.data() + t * sums, *norms = gram + a.q_count * per_head;
    for (int64_t h = 0; h < a.heads; ++h) {
      const Span qs = span(a.q_index, a.q_count, h * per_head, (h + 1) * per_head);
      const Span ks = span(a.k_index, a.k_count, h * per_head, (h + 1) * per_head);
      gram_block(q + qs.first * stride, qs.last - qs.first, k + ks.first * stride, ks.last - ks.first, stride, whole,
                 gram + qs.first * per_head, per_head);
    }
    for (int64_t j = 0; j < a.q_count + a.k_count; ++j)
      gram_tile<1, 1>(extra + j * stride, extra + j * stride, stride, whole, norms + j, 1);
  });

  // The attention matrix, rows for every channel and columns for the live v of its head: softmax over all k of the
  // head, the dead ones included, whose logit is 0 and whose exp(0) = 1 is part of the denominator.
  const int64_t tasks_per_item = s.tasks() / a.size.batch;
  std::vector<float> attention(a.size.batch * channels * per_head, 0.0f);
  std::vector<Span> vs(a.heads);
  for (int64_t h = 0; h < a.heads; ++h) vs[h] = span(a.v_index, a.v_count, h * per_head, (h + 1) * per_head);
  for (int64_t b = 0; b < a.size.batch; ++b) {
    double* total = partial.data() + b * tasks_per_item * sums;
    for (int64_t t = 1; t < tasks_per_item; ++t)
      for (int64_t i = 0; i < sums; ++i) total[i] += total[t * sums + i];
    const double *q_norm = total + a.q_count * per_head, *k_norm = q_norm + a.q_count;
    std::vector<double> weight(per_head);
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t h = c / per_head;
      std::fill(weight.begin(), weight.end(), 0.0);
      const Span qs = span(a.q_index, a.q_count, c, c + 1), ks = span(a.k_index, a.k_count, h * per_head, (h + 1) * per_head);
      if (qs.first < qs.last) {
        const double norm = std::max(std::sqrt(q_norm[qs.first]), 1e-12);
        for (int64_t k = ks.first; k < ks.last; ++k)
          weight[a.k_index[k] - h * per_head] = total[qs.first * per_head + k - ks.first] / norm /
                                                std::max(std::sqrt(k_norm[k]), 1e-12) * a.temperature[h];
      }
      const double most = *std::max_element(weight.begin(), weight.end());
      double denominator = 0;
      for (double& w : weight) denominator += w = std::exp(w - most);
      float* to = attention.data() + (b * channels + c) * per_head;
      const int64_t n = vs[h].last - vs[h].first;
      // compact within the head: row c of an (per_head x n) matrix at the head's start
      float* packed = attention.data() + (b * channels + h * per_head) * per_head + (c - h * per_head) * n;
      (void)to;
      for (int64_t v = 0; v < n; ++v) packed[v] = float(weight[a.v_index[vs[h].first + v] - h * per_head] / denominator);
    }
  }

  const int64_t chunk = 4 * L * 2, chunks = (plane + chunk - 1) / chunk, v_stride = padded(chunk);
  auto apply = [&](int64_t task) {
    const int64_t b = task / chunks, p = task % chunks * chunk, n = std::min(chunk, plane - p);
    float *v = mirl::scratch((a.v_count + 2 * channels) * v_stride), *mixed = v + a.v_count * v_stride;
    float* out = mixed + channels * v_stride;
    for (int64_t c = 0; c < a.v_count; ++c) {
      std::memcpy(v + c * v_stride, a.scratch + (b * a.v_count + c) * plane + p, sizeof(float) * n);
      std::memset(v + c * v_stride + n, 0, sizeof(float) * (chunk - n));
    }
    for (int64_t h = 0; h < a.heads; ++h)
      dense(attention.data() + (b * channels + h * per_head) * per_head, per_head, vs[h].last - vs[h].first,
            v + vs[h].first * v_stride, v_stride, mixed + h * per_head * v_stride, n);
    rows(a.project_out, mixed, v_stride, out, v_stride, n, channels);
    for (int64_t c = 0; c < channels; ++c) {
      const float* from = a.x.data + b * a.x.stride + c * plane + p;
      float* to = a.y.data + b * a.y.stride + c * plane + p;
      for (int64_t i = 0; i < n; ++i) to[i] = from[i] + out[c * v_stride + i];
    }
  };
  mirl::parallel(a.size.batch * chunks, a.threads, apply);
}

}  // namespace MIRL_ISA
