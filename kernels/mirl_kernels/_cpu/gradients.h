// What the backward kernels share: products of two panels summed over their pixels (the gradients of a matrix), the
// derivatives of GELU and of the layer norm, and sums that come out the same on any number of threads.
#pragma once
#include "strips.h"

namespace MIRL_ISA {

constexpr int64_t GRADIENT_TASKS = 8;  // into how many tasks a backward pass is cut, whatever the number of threads

// e^x for x from -87 to 0: 2^n e^f, |f| <= ln(2) / 2, by a polynomial of ours (weighted least squares, weights refined until the
// relative error levels, at 3e-09). ln(2) is taken off in two parts, so that no digits of f are lost.
inline Vec exponential(Vec x) {
  const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, which its last bits then hold
  const Vec shifted = x * 1.44269504f + magic, whole = shifted - magic;
  const Vec f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vec p = all(1.381459879e-03f);
  p = p * f + 8.368716575e-03f;
  p = p * f + 4.166838899e-02f;
  p = p * f + 1.666652113e-01f;
  p = p * f + 4.999999404e-01f;
  p = p * f * f + f + 1.0f;
  Int bits, exponent;
  std::memcpy(&bits, &p, sizeof bits);
  std::memcpy(&exponent, &shifted, sizeof exponent);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

// GELU(x) and its derivative Phi(x) + x phi(x).
inline void gelu_derivative(Vec x, Vec* value, Vec* slope) {
  const Vec c = vmax(vmin(x, all(12.0f)), all(-12.0f));
  const Vec cumulative = normal_cumulative(x);
  *value = x * cumulative;
  *slope = cumulative + c * exponential(c * c * -0.5f) * 0.3989422804f;
}

// gradient[row * columns + column] += the sum over V vectors of left[row] * right[column].
template <int V>
inline void correlate_all(int64_t rows, int64_t columns, const float* left, const float* right, float* gradient) {
  constexpr int ROWS = 4, COLUMNS = L / 4;
  for (int64_t r = 0; r < rows; r += ROWS) {
    const float* own[ROWS];
    for (int i = 0; i < ROWS; ++i) own[i] = left + std::min(r + i, rows - 1) * PANEL;
    for (int64_t c = 0; c < columns; c += COLUMNS) {
      const float* other[COLUMNS];
      for (int j = 0; j < COLUMNS; ++j) other[j] = right + std::min(c + j, columns - 1) * PANEL;
      Vec tile[L] = {};
      for (int v = 0; v < V; ++v) {
        Vec x[ROWS];
        for (int i = 0; i < ROWS; ++i) x[i] = load(own[i] + v * L);
        for (int j = 0; j < COLUMNS; ++j) {
          const Vec y = load(other[j] + v * L);
          for (int i = 0; i < ROWS; ++i) tile[i * COLUMNS + j] += x[i] * y;
        }
      }
      float lanes[L];
      store(lanes, sums(tile));
      const int64_t some = std::min<int64_t>(COLUMNS, columns - c);
      for (int64_t i = 0; i < std::min<int64_t>(ROWS, rows - r); ++i) {
        float* to = gradient + (r + i) * columns + c;
        if (some == COLUMNS)
          for (int j = 0; j < COLUMNS; ++j) to[j] += lanes[i * COLUMNS + j];
        else
          for (int64_t j = 0; j < some; ++j) to[j] += lanes[i * COLUMNS + j];
      }
    }
  }
}

// The same for the entries of a packed matrix alone, in their order; for all where it is kept whole. Lanes that are no
// pixels must be zero in `left`.
template <int V>
inline void correlate(const MirlRows& m, const float* left, const float* right, float* gradient) {
  if (m.dense) return correlate_all<V>(m.rows, m.columns, left, right, gradient);
  for (int64_t r = 0; r < m.rows; ++r) {
    Vec own[V];
    for (int v = 0; v < V; ++v) own[v] = load(left + r * PANEL + v * L);
    for (int64_t k = m.start[r], end = m.start[r + 1]; k < end; k += L) {
      const int64_t some = std::min(L, end - k);
      Vec block[L] = {};
      for (int64_t i = 0; i < some; ++i) {
        const float* p = reinterpret_cast<const float*>(reinterpret_cast<const char*>(right) + m.entry[k + i].offset);
        for (int v = 0; v < V; ++v) block[i] += own[v] * load(p + v * L);
      }
      const Vec sum = sums(block);
      const Place at{0, 0, some};
      store(gradient + k, load(gradient + k, at) + sum, at);
    }
  }
}

// How many floats the gradient of a matrix takes.
inline int64_t gradient_floats(const MirlRows& m) { return m.dense ? m.rows * m.columns : m.start[m.rows]; }

// gradient[r] += the sum of V vectors of row r.
template <int V>
inline void add_rows(int64_t rows, const float* panel, float* gradient) {
  for (int64_t r = 0; r < rows; r += L) {
    const int64_t some = std::min(L, rows - r);
    Vec block[L] = {};
    for (int64_t i = 0; i < some; ++i)
      for (int v = 0; v < V; ++v) block[i] += load(panel + (r + i) * PANEL + v * L);
    const Vec sum = sums(block);
    const Place at{0, 0, some};
    store(gradient + r, load(gradient + r, at) + sum, at);
  }
}

// The gradient of a centred norm's argument, in place: from that of its result, and the result.
template <int V>
inline void layer_norm_gradient(int64_t channels, const float* normal, const Vec* scale, float* gradient) {
  Vec mean[V] = {}, along[V] = {};
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      const Vec g = load(gradient + c * PANEL + v * L);
      mean[v] += g;
      along[v] += g * load(normal + c * PANEL + v * L);
    }
  for (int v = 0; v < V; ++v) mean[v] = mean[v] / float(channels), along[v] = along[v] / float(channels);
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      float* to = gradient + c * PANEL + v * L;
      store(to, (load(to) - mean[v] - load(normal + c * PANEL + v * L) * along[v]) * scale[v]);
    }
}

// A panel of an image, zero where there is no pixel.
template <int V>
void gather(const MirlImage& x, int64_t b, int64_t channels, int64_t y, int64_t column, const Place* at, float* panel) {
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) store(panel + c * PANEL + v * L, load(x.at(b, c, y + at[v].row, column + at[v].column), at[v]));
}

// A product's rows as a panel.
inline void product_panel(const MirlRows& m, const float* in, int64_t n, float* out) {
  product(m, in, n, [&](int64_t r, int64_t begin, auto width, const Vec* sums) {
    for (int v = 0; v < width; ++v) store(out + r * PANEL + (begin + v) * L, sums[v]);
  });
}

// What the taps of the first `rows` ring channels give, as a panel, zero where there is no pixel.
inline void taps_panel(const Strips& s, const Taps& taps, int64_t rows, const Step& step, const Place* at, int64_t n, float* out) {
  for (int64_t r = 0; r < rows; ++r)
    runs<4>(at, n, [&](int64_t v, auto few) {
      Vec sums[few];
      taps.panel<few>(r, (step.slot + at[v].row) % s.slots, step.hidden + r * s.hidden_stride + at[v].column, sums);
      for (int i = 0; i < few; ++i)
        store(out + r * PANEL + (v + i) * L, at[v + i].valid == L ? sums[i] : only(sums[i], at[v + i].valid));
    });
}

// Stores the gradient of what the taps of ring channel c gave, n vectors of it, zero where there is no pixel, and adds
// up the gradients of these taps.
template <int V>
inline void tap_gradient(const Strips& s, const Taps& taps, int64_t c, const Step& step, const Place* at, const Vec* d,
                         const MirlImage& back, float* gradient) {
  const float* in[V];
  const int32_t* offset[V];
  for (int v = 0; v < V; ++v) {
    store(back.at(step.b, c, step.y + at[v].row, step.x0 + at[v].column), d[v], at[v]);
    in[v] = step.hidden + c * s.hidden_stride + at[v].column;
    offset[v] = taps.offset.data() + (step.slot + at[v].row) % s.slots * taps.count;
  }
  for (int64_t k = taps.rows.start[c], end = taps.rows.start[c + 1]; k < end; k += L) {
    Vec block[L] = {};
    const Place some{0, 0, std::min(L, end - k)};
    for (int64_t i = 0; i < some.valid; ++i)
      for (int v = 0; v < V; ++v) block[i] += d[v] * load(in[v] + offset[v][k + i]);
    store(gradient + k, load(gradient + k, some) + sums(block), some);
  }
}

// What begins MDTA and GDFN, backwards: dx = dy + the gradient through the taps (`flipped`), the 1x1 layer and the norm, from
// `back`, that of what the taps gave. A task's gradient of the 1x1 layer and that of its offsets go to in(task).
template <class In>
inline void through_the_norm(const Strips& s, const MirlImage& x, const MirlImage& dy, const MirlImage& dx, const MirlImage& back,
                             const MirlRows& flipped, const MirlRows& pointwise, const MirlRows& transposed, int64_t threads, In&& in) {
  const int64_t channels = s.size.channels, hidden = s.hidden;
  const Taps taps(flipped, s);
  auto fill = [&](const Filling& f) {
    for (int64_t h = 0; h < hidden; ++h)
      for (int64_t v = 0; v < f.n; ++v)
        store(f.to[v] + h * s.hidden_stride, load(back.at(f.b, h, f.y + f.at[v].row, f.x + f.at[v].column), f.at[v]));
  };
  run_strips(s, 0, (hidden + 2 * channels) * PANEL, threads, fill, [&](const Step& step) {
    float *dh = step.extra, *normal = dh + hidden * PANEL, *d = normal + channels * PANEL, *gradient = in(step.task);
    const std::vector<Place> all = places(step.count, step.x1 - step.x0);
    grouped(all.size(), [&](int64_t first, int64_t count) {
      const Place* at = all.data() + first;
      with_vectors(count, [&](auto n) {
        taps_panel(s, taps, hidden, step, at, n, dh);
        Vec scale[n];
        gather<n>(x, step.b, channels, step.y, step.x0, at, normal);
        normalise<n>(channels, true, normal, 1e-5f, scale);
        correlate<n>(pointwise, dh, normal, gradient);
        add_rows<n>(hidden, dh, gradient + gradient_floats(pointwise));
        product_panel(transposed, dh, n, d);
        layer_norm_gradient<n>(channels, normal, scale, d);
        for (int64_t c = 0; c < channels; ++c)
          for (int v = 0; v < n; ++v) {
            const int64_t row = step.y + at[v].row, column = step.x0 + at[v].column;
            store(dx.at(step.b, c, row, column), load(d + c * PANEL + v * L) + load(dy.at(step.b, c, row, column), at[v]), at[v]);
          }
      });
    });
  });
}

// The tasks' gradients, each `stride` floats: zeros, in memory that this thread keeps.
inline std::vector<float>& zeroed(int64_t tasks, int64_t stride, int which = 0) {
  static thread_local std::vector<float> kept[2];
  kept[which].assign(tasks * stride, 0.0f);
  return kept[which];
}

// The first `count` of every task's gradients, added up in order.
inline void add_up(const std::vector<float>& partial, int64_t stride, int64_t count, int64_t threads, float* gradient) {
  constexpr int64_t SHARE = 2048;
  auto task = [&](int64_t t) {
    const int64_t first = t * SHARE, n = std::min(SHARE, count - first);
    double total[SHARE] = {};
    for (size_t at = first; at < partial.size(); at += stride)
      for (int64_t i = 0; i < n; ++i) total[i] += partial[at + i];
    for (int64_t i = 0; i < n; ++i) gradient[first + i] = float(total[i]);
  };
  mirl::parallel((count + SHARE - 1) / SHARE, threads, task);
}

}  // namespace MIRL_ISA
