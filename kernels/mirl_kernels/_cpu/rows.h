// The sparse product at the heart of every op: rows of (column, value) pairs against panels of pixels.
#pragma once
#include "abi.h"
#include "threads.h"
#include "vector.h"

namespace MIRL_ISA {

// out[r][p] = bias[r] + sum_k value[k] * in[column[k] * in_stride + p], for V vectors of pixels p held in registers.
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

// A padded channel stride: whole vectors, never a multiple of 4 KiB, where all channels would meet in one cache set.
inline int64_t padded(int64_t floats) {
  const int64_t stride = round_up(floats, 16) + 16;
  return stride % 1024 ? stride : stride + 16;
}

}  // namespace MIRL_ISA
