// GDFN in strips: neither the hidden channels nor the gate leave the second-level cache.
#include "strips.h"

namespace MIRL_ISA {

void gdfn(const MirlGdfn& a) {
  const int64_t pairs = a.project_in.rows / 2, channels = a.size.channels;
  Strips s(a.size, 2 * pairs, pairs + channels, a.threads);
  const int64_t stride = s.flat_stride(), plane = a.size.height * a.size.width;
  s.extra = (pairs + channels) * stride;
  run_strips(s, a.x, a.project_in, a.threads,
             [&](int64_t, int64_t b, int64_t y, int64_t count, int64_t x0, int64_t x1, const float* hidden, float* extra) {
    float *gate = extra, *out = gate + pairs * stride;
    const int64_t pixels = count * s.pitch;
    for (int64_t j = 0; j < pairs; ++j) {
      const float* first = hidden + j * s.hidden_stride;
      const float* second = first + pairs * s.hidden_stride;
      for (int64_t p = 0; p < pixels; p += 2 * L) {
        Vec u[2], v[2];
        taps<2>(a.dwconv, j, first + p, s.pitch, u);
        taps<2>(a.dwconv, pairs + j, second + p, s.pitch, v);
        store(gate + j * stride + p, gelu(u[0]) * v[0]);
        if (p + L < pixels) store(gate + j * stride + p + L, gelu(u[1]) * v[1]);
      }
    }
    rows(a.project_out, gate, stride, out, stride, pixels, pairs);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = c * plane + (y + i) * a.size.width + x0;
        const float* from = a.x.data + b * a.x.stride + at;
        const float* add = out + c * stride + i * s.pitch + 1;
        float* to = a.y.data + b * a.y.stride + at;
        for (int64_t p = 0; p < x1 - x0; ++p) to[p] = from[p] + add[p];
      }
  });
}

}  // namespace MIRL_ISA
