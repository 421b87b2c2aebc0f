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
    norm_stride = padded(step * pitch > 2 * pitch ? step * pitch : 2 * pitch);
    hidden_stride = padded((step + 2) * pitch + 2 * L);
    const int64_t most = std::max<int64_t>(1, s.height / std::max<int64_t>(8, step));
    while (down < most && (across * s.batch * down) % threads && across * s.batch * down < 4 * threads) ++down;
  }

  int64_t tasks() const { return across * down * size.batch; }
  int64_t flat_stride() const { return padded(step * pitch); }
  int64_t floats() const { return 16 + size.channels * norm_stride + hidden * hidden_stride + extra; }
};

// Normalised pixels of one image row segment [first, last) to out[c * stride + (x - first)].
inline void norm_row(const float* x, int64_t plane, int64_t channels, int64_t count, float* out, int64_t stride) {
  for (int64_t p = 0; p < count; p += 4 * L) {
    const int64_t n = std::min(count - p, 4 * L);
    float mean[4 * L] = {}, var[4 * L] = {};
    for (int64_t c = 0; c < channels; ++c) {
      const float* from = x + c * plane + p;
      float* to = out + c * stride + p;
      for (int64_t i = 0; i < n; ++i) to[i] = from[i], mean[i] += from[i];
    }
    for (int64_t i = 0; i < n; ++i) mean[i] /= channels;
    for (int64_t c = 0; c < channels; ++c) {
      const float* to = out + c * stride + p;
      for (int64_t i = 0; i < n; ++i) var[i] += (to[i] - mean[i]) * (to[i] - mean[i]);
    }
    for (int64_t i = 0; i < n; ++i) var[i] = 1 / std::sqrt(var[i] / channels + 1e-5f);
    for (int64_t c = 0; c < channels; ++c) {
      float* to = out + c * stride + p;
      for (int64_t i = 0; i < n; ++i) to[i] = (to[i] - mean[i]) * var[i];
    }
  }
}

// V vectors of one depthwise row over the flat hidden buffer, from position p.
template <int V>
inline void taps(const MirlRows& dw, int64_t row, const float* in, int64_t pitch, Vec* sums) {
  const Vec bias = all(dw.bias ? dw.bias[row] : 0.0f);
  for (int v = 0; v < V; ++v) sums[v] = bias;
  for (int32_t k = dw.start[row], end = dw.start[row + 1]; k < end; ++k) {
    const int64_t tap = dw.column[k];
    const float* p = in + tap / 3 * pitch + tap % 3 - 1;
    const Vec w = all(dw.value[k]);
    for (int v = 0; v < V; ++v) sums[v] += w * load(p + v * L);
  }
}

// Runs every strip. For each step, consume(task, b, y, count, x0, x1, hidden, stride, extra) sees the hidden rows y - 1 to
// y + count of columns x0 - 1 to x1, row by row with `pitch` columns each; `hidden` may be read one float before it.
template <class Consume>
void run_strips(const Strips& s, const MirlImage& x, const MirlRows& pointwise, int64_t threads, Consume consume) {
  const int64_t plane = s.size.height * s.size.width;
  auto task = [&](int64_t t) {
    const int64_t b = t / (s.across * s.down), part = t / s.across % s.down, strip = t % s.across;
    const int64_t x0 = strip * s.width, x1 = std::min(x0 + s.width, s.size.width);
    const int64_t top = s.size.height * part / s.down, bottom = s.size.height * (part + 1) / s.down;
    const float* image = x.data + b * x.stride;
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
          norm_row(image + (y + i) * s.size.width + first, plane, s.size.channels, last - first,
                   norm + i * s.pitch + (first - x0 + 1), s.norm_stride);
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
