// What MDTA and GDFN begin with: layer norm, sparse 1x1, sparse depthwise 3x3, without the hidden channels ever
// leaving the second-level cache. The image is cut into strips of columns; each runs down its rows and keeps the
// two hidden rows that the next step needs again.
#pragma once
#include <vector>

#include "rows.h"

namespace MIRL_ISA {

struct Strips {
  MirlSize size;
  int64_t hidden;        // rows of the 1x1
  int64_t extra;         // further floats of scratch per thread
  int64_t step = 1;      // rows of the image done at once
  int64_t across = 1;    // strips
  int64_t width = 1;     // output columns of a strip
  int64_t down = 1;      // parts that the rows are cut into, each recomputing two hidden rows
  int64_t pitch = 0;     // columns of a strip with the halo: buffer column c is image column x0 - 1 + c
  int64_t norm_stride = 0, hidden_stride = 0;

  Strips(const MirlSize& s, int64_t hidden_rows, int64_t per_pixel, int64_t threads) : size(s), hidden(hidden_rows), extra(0) {
    const int64_t budget = 200000;  // floats in the second-level cache
    double best = 1e30;
    for (int64_t n = 1; n <= (s.width + 7) / 8; ++n) {
      const int64_t w = (s.width + n - 1) / n;
      for (int64_t rows : {1, 2, 4, 8}) {
        if (rows > s.height && rows > 1) break;
        const int64_t floats = hidden * (rows + 2) * (w + 2) + (per_pixel + s.channels) * rows * (w + 2);
        const double halo = double(n * (w + 2)) / s.width;
        const double vectors = double(round_up(rows * (w + 2), L)) / (rows * (w + 2));
        const double over = floats > budget ? 4.0 * floats / budget : 1.0;
        const double cost = halo * vectors * over * (1 + 0.3 / rows);
        if (cost < best) best = cost, step = rows, across = n, width = w;
      }
    }
    across = (s.width + width - 1) / width;
    pitch = width + 2;
    norm_stride = padded(std::max<int64_t>(step, 2) * pitch + L);
    hidden_stride = padded((step + 2) * pitch + 2 * L);
    const int64_t most = std::max<int64_t>(1, s.height / std::max<int64_t>(8, step));
    while (down < most && (across * s.batch * down) % threads && across * s.batch * down < 4 * threads) ++down;
  }

  int64_t tasks() const { return across * down * size.batch; }
  // What a step gives to one channel: its rows without the halo, each rounded up to whole vectors.
  int64_t lined() const { return round_up(width, L); }
  int64_t step_stride() const { return padded(step * lined()); }
  int64_t floats() const { return 16 + size.channels * norm_stride + hidden * hidden_stride + extra; }
};

// V vectors of pixels through the layer norm, without its gain and bias: two passes over the copy in `out`, since
// E[x^2] - E[x]^2 would lose digits. What lies `ahead` floats further is wanted next: too many streams at once for the
// processor to foresee.
template <int V>
inline void norm_panel(const float* x, int64_t x_stride, int64_t channels, float* out, int64_t stride, int64_t ahead) {
  Vec mean[V] = {}, scale[V] = {};
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      const float* from = x + c * x_stride + v * L;
      const Vec value = load(from);
      __builtin_prefetch(from + ahead);
      store(out + c * stride + v * L, value);
      mean[v] += value;
    }
  for (int v = 0; v < V; ++v) mean[v] = mean[v] / float(channels);
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      const Vec centred = load(out + c * stride + v * L) - mean[v];
      scale[v] += centred * centred;
    }
  for (int v = 0; v < V; ++v) scale[v] = 1.0f / vsqrt(scale[v] / float(channels) + 1e-5f);
  for (int64_t c = 0; c < channels; ++c)
    for (int v = 0; v < V; ++v) {
      float* to = out + c * stride + v * L;
      store(to, (load(to) - mean[v]) * scale[v]);
    }
}

// The normalised pixels x[c * x_stride + 0 .. count) to out[c * stride + 0 .. count), or to L floats where there are fewer.
inline void norm_row(const float* x, int64_t x_stride, int64_t channels, int64_t count, float* out, int64_t stride, int64_t ahead) {
  int64_t p = 0;
  for (; p + 4 * L <= count; p += 4 * L) norm_panel<4>(x + p, x_stride, channels, out + p, stride, ahead);
  for (; p + L <= count; p += L) norm_panel<1>(x + p, x_stride, channels, out + p, stride, ahead);
  if (p == count) return;
  if (count >= L) return norm_panel<1>(x + count - L, x_stride, channels, out + count - L, stride, ahead);  // some again
  for (int64_t c = 0; c < channels; ++c) {
    std::memset(out + c * stride, 0, sizeof(float) * L);
    std::memcpy(out + c * stride, x + c * x_stride, sizeof(float) * count);
  }
  norm_panel<1>(out, stride, channels, out, stride, 0);
}

// The surviving 3x3 taps of each hidden channel, as offsets from the pixel's own place in the row above.
struct Taps {
  const MirlRows& rows;
  std::vector<int32_t> offset;

  Taps(const MirlRows& dwconv, int64_t pitch) : rows(dwconv), offset(dwconv.start[dwconv.rows]) {
    for (size_t i = 0; i < offset.size(); ++i)
      offset[i] = int32_t(dwconv.column[i] / 3 * pitch + dwconv.column[i] % 3 - 1);
  }

  // V vectors of one channel.
  template <int V>
  void panel(int64_t channel, const float* in, Vec* sums) const {
    for (int v = 0; v < V; ++v) sums[v] = Vec{};
    for (int32_t k = rows.start[channel], end = rows.start[channel + 1]; k < end; ++k) {
      const float* p = in + offset[k];
      const Vec w = all(rows.value[k]);
      for (int v = 0; v < V; ++v) sums[v] += w * load(p + v * L);
    }
  }

  // `count` pixels of one channel.
  void row(int64_t channel, const float* in, int64_t count, float* out) const {
    Vec sums[4];
    for (; count >= 4 * L; in += 4 * L, out += 4 * L, count -= 4 * L) {
      panel<4>(channel, in, sums);
      for (int v = 0; v < 4; ++v) store(out + v * L, sums[v]);
    }
    for (; count > 0; in += L, out += L, count -= L) {
      panel<1>(channel, in, sums);
      if (count >= L) store(out, sums[0]);
      else std::memcpy(out, sums, sizeof(float) * count);
    }
  }
};

// Asks for the memory of rows that are about to be written, in `parts` shares between the arithmetic: a store that
// misses every cache costs more than what it stores. (GCC drops calls of functions that do nothing but this.)
__attribute__((always_inline)) inline void fetch_rows(const MirlImage& y, int64_t channels, int64_t b, int64_t y0,
                                                      int64_t y1, int64_t x0, int64_t x1, int64_t part, int64_t parts) {
  for (int64_t c = channels * part / parts; c < channels * (part + 1) / parts; ++c)
    for (int64_t i = y0; i < y1; ++i)
      for (int64_t p = x0; p < x1; p += 16) __builtin_prefetch(y.at(b, c, i, p), 1, 3);
}

// Runs every strip. For each step, consume(task, b, y, count, x0, x1, hidden, extra) sees the hidden rows y - 1 to
// y + count of columns x0 - 1 to x1, row by row with `pitch` columns each, and up to L floats behind the last.
template <class Consume>
void run_strips(const Strips& s, const MirlImage& x, const MirlRows& pointwise, int64_t threads, Consume consume) {
  auto task = [&](int64_t t) {
    const int64_t b = t / (s.across * s.down), part = t / s.across % s.down, strip = t % s.across;
    const int64_t x0 = strip * s.width, x1 = std::min(x0 + s.width, s.size.width);
    const int64_t top = s.size.height * part / s.down, bottom = s.size.height * (part + 1) / s.down;
    float* memory = mirl::scratch(s.floats()) + 16;
    float* norm = memory;
    float* hidden = norm + s.size.channels * s.norm_stride;
    float* extra = hidden + s.hidden * s.hidden_stride;
    std::memset(norm, 0, sizeof(float) * s.size.channels * s.norm_stride);
    std::memset(hidden - 16, 0, sizeof(float) * (s.hidden * s.hidden_stride + 16));

    // Hidden rows y .. y + count - 1 into buffer rows `to` and on; zero outside the image, as the padding is.
    auto fill = [&](int64_t y, int64_t count, int64_t to) {
      const int64_t first = std::max<int64_t>(x0 - 1, 0), last = std::min(x1 + 1, s.size.width);
      for (int64_t i = 0; i < count; ++i)
        if (y + i >= 0 && y + i < s.size.height)
          norm_row(x.at(b, 0, y + i, first), x.channel, s.size.channels, last - first,
                   norm + i * s.pitch + (first - x0 + 1), s.norm_stride, s.step * x.row);
      float* at = hidden + to * s.pitch;
      rows(pointwise, norm, s.norm_stride, at, s.hidden_stride, count * s.pitch, s.size.channels);
      for (int64_t i = 0; i < count; ++i) {
        const bool outside = y + i < 0 || y + i >= s.size.height;
        const int64_t right = last - x0 + 1;
        for (int64_t h = 0; h < s.hidden; ++h) {
          float* row = at + h * s.hidden_stride + i * s.pitch;
          if (outside) std::memset(row, 0, sizeof(float) * s.pitch);
          if (x0 == 0) row[0] = 0;
          for (int64_t c = right; c < s.pitch; ++c) row[c] = 0;
        }
      }
    };

    fill(top - 1, 2, 0);
    for (int64_t y = top; y < bottom; y += s.step) {
      const int64_t count = std::min(s.step, bottom - y);
      fill(y + 1, count, 2);
      consume(t, b, y, count, x0, x1, hidden, extra);
      for (int64_t h = 0; h < s.hidden; ++h) {
        float* row = hidden + h * s.hidden_stride;
        std::memmove(row, row + count * s.pitch, sizeof(float) * 2 * s.pitch);
      }
    }
  };
  mirl::parallel(s.tasks(), threads, task);
}

}  // namespace MIRL_ISA
