// A k x k convolution by sparse rows, shared by the conv and the prompt op.
#pragma once
#include <vector>

#include "rows.h"

namespace MIRL_ISA {

template <int V>
void rows_panel(const MirlRows& m, const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < m.rows; ++r) {
    Vec sums[V];
    const Vec bias = all(m.bias ? m.bias[r] : 0.0f);
    for (int v = 0; v < V; ++v) sums[v] = bias;
    for (int32_t k = m.start[r], end = m.start[r + 1]; k < end; ++k) {
      const float* p = in + m.column[k] * in_stride;
      const Vec w = all(m.value[k]);
      for (int v = 0; v < V; ++v) sums[v] += w * load(p + v * L);
    }
    for (int v = 0; v < V; ++v) store(out + r * out_stride + v * L, sums[v]);
  }
}

// The same for `pixels` pixels, rounded up to whole vectors, in panels that stay in the first-level cache.
inline void rows(const MirlRows& m, const float* in, int64_t in_stride, float* out, int64_t out_stride, int64_t pixels,
                 int64_t channels) {
  int64_t left = (pixels + L - 1) / L;
  const int64_t fits = std::max<int64_t>(2, 24576 / (std::max<int64_t>(channels, 1) * 4 * L));
  while (left > 0) {
    const int64_t panel = std::min(left, fits);
    int64_t done;
    if (panel >= 8) rows_panel<8>(m, in, in_stride, out, out_stride), done = 8;
    else if (panel >= 6) rows_panel<6>(m, in, in_stride, out, out_stride), done = 6;
    else if (panel >= 4) rows_panel<4>(m, in, in_stride, out, out_stride), done = 4;
    else if (panel == 3) rows_panel<3>(m, in, in_stride, out, out_stride), done = 3;
    else if (panel == 2) rows_panel<2>(m, in, in_stride, out, out_stride), done = 2;
    else rows_panel<1>(m, in, in_stride, out, out_stride), done = 1;
    in += done * L, out += done * L, left -= done;
  }
}

inline void run_conv(const MirlConv& a) {
  const int64_t k = a.kernel, pad = k / 2, height = a.size.height, width = a.size.width, channels = a.size.channels;
  const int64_t outputs = a.weight.rows;
  int64_t step = 4, across = 1;  // tiles of `step` rows by `width / across` columns that fit the second-level cache
  auto floats = [&] { return (channels * (step + k - 1) + outputs * step) * ((width + across - 1) / across + k - 1); };
  while (floats() > 200000 && across < (width + 15) / 16) ++across;
  while (floats() > 200000 && step > 1) step /= 2;
  const int64_t wide = (width + across - 1) / across, pitch = wide + k - 1, down = (height + step - 1) / step;
  const int64_t in_stride = padded((step + k - 1) * pitch + k), out_stride = padded(step * pitch);
  // Columns (channel, ky, kx) become offsets into the tile.
  std::vector<int32_t> offsets(a.weight.start[outputs]);
  for (size_t i = 0; i < offsets.size(); ++i) {
    const int64_t column = a.weight.column[i], tap = column % (k * k);
    offsets[i] = int32_t(column / (k * k) * in_stride + tap / k * pitch + tap % k);
  }
  MirlRows weight = a.weight;
  weight.column = offsets.data();

  auto task = [&](int64_t t) {
    const int64_t b = t / (across * down), y0 = t / across % down * step, x0 = t % across * wide;
    const int64_t y1 = std::min(y0 + step, height), x1 = std::min(x0 + wide, width);
    if (x0 >= x1) return;
    float *in = mirl::scratch(channels * in_stride + outputs * out_stride + L), *out = in + channels * in_stride + L;
    std::memset(in, 0, sizeof(float) * (channels * in_stride + L));
    const int64_t first = std::max<int64_t>(x0 - pad, 0), last = std::min(x1 + pad, width);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t y = std::max<int64_t>(y0 - pad, 0); y < std::min(y1 + pad, height); ++y)
        std::memcpy(in + c * in_stride + (y - y0 + pad) * pitch + first - x0 + pad,
                    a.x.at(b, c, y, first), sizeof(float) * (last - first));
    rows(weight, in, 1, out, out_stride, (y1 - y0) * pitch, channels);
    // Output o's pixel (y, x) goes to channel `to`, row `line` and every `apart`-th pixel from `left`; unshuffled,
    // every u-th pixel goes to the same channel, so each of its u places is a walk of its own.
    const int64_t r = a.shuffle, u = r < -1 ? -r : 1;
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t y = y0; y < y1; ++y)
        for (int64_t x = x0; x < std::min(x0 + u, x1); ++x) {
          int64_t to = o, line = y, left = x, apart = 1;
          if (r > 1) to = o / (r * r), line = y * r + o % (r * r) / r, left = x * r + o % r, apart = r;
          if (u > 1) to = o * u * u + y % u * u + x % u, line = y / u, left = x / u;
          const float *from = out + o * out_stride + (y - y0) * pitch - x0, *add = a.residual.data ? a.residual.at(b, to, line, left) : nullptr;
          float* put = a.y.at(b, to, line, left);
          if (add) for (int64_t i = x; i < x1; i += u, put += apart, add += apart) *put = from[i] + *add;
          else for (int64_t i = x; i < x1; i += u, put += apart) *put = from[i];
        }
  };
  mirl::parallel(a.size.batch * across * down, a.threads, task);
}

}  // namespace MIRL_ISA
