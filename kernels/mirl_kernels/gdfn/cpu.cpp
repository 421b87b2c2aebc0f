// GDFN in strips: neither the hidden channels nor the gate leave the second-level cache.
#include "strips.h"

namespace MIRL_ISA {

void gdfn(const MirlGdfn& a) {
  const int64_t pairs = a.project_in.rows / 2, channels = a.size.channels;
  Strips s(a.size, 2 * pairs, pairs + channels, a.threads);
  const int64_t lined = s.lined(), stride = s.step_stride();
  s.extra = (pairs + channels) * stride;
  const Taps taps(a.dwconv, s.pitch);
  run_strips(s, a.x, a.project_in, a.threads,
             [&](int64_t, int64_t b, int64_t y, int64_t count, int64_t x0, int64_t x1, const float* hidden, float* extra) {
    float *gate = extra, *out = gate + pairs * stride;
    for (int64_t j = 0; j < pairs; ++j) {
      fetch_rows(a.y, channels, b, y, y + count, x0, x1, j, pairs);
      for (int64_t i = 0; i < count; ++i) {
        const float* first = hidden + j * s.hidden_stride + i * s.pitch + 1;
        const float* second = first + pairs * s.hidden_stride;
        float* to = gate + j * stride + i * lined;
        int64_t p = 0;
        for (; p + 2 * L <= lined; p += 2 * L) {
          Vec u[2], v[2];
          taps.panel<2>(j, first + p, u);
          taps.panel<2>(pairs + j, second + p, v);
          store(to + p, gelu(u[0]) * v[0]);
          store(to + p + L, gelu(u[1]) * v[1]);
        }
        if (p < lined) {
          Vec u, v;
          taps.panel<1>(j, first + p, &u);
          taps.panel<1>(pairs + j, second + p, &v);
          store(to + p, gelu(u) * v);
        }
      }
    }
    rows(a.project_out, gate, stride, out, stride, count * lined, pairs);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < count; ++i) {
        const float *from = a.x.at(b, c, y + i, x0), *add = out + c * stride + i * lined;
        float* to = a.y.at(b, c, y + i, x0);
        for (int64_t p = 0; p < x1 - x0; ++p) to[p] = from[p] + add[p];
      }
  });
}

}  // namespace MIRL_ISA
