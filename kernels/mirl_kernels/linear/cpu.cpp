// Linear layer: panels of tokens, turned so that the product's vectors run over tokens, and turned back.
#include "strips.h"

namespace MIRL_ISA {
namespace {

// to[j * to_stride + i] = from[i * from_stride + j] for i < rows <= L, j < columns <= L.
inline void turn(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows, int64_t columns) {
  Vec block[L] = {};
  for (int64_t i = 0; i < rows; ++i) block[i] = load(from + i * from_stride, Place{0, 0, columns});
  transpose(block);
  for (int64_t j = 0; j < columns; ++j) store(to + j * to_stride, block[j], Place{0, 0, rows});
}

}  // namespace

void linear(MirlLinear& a) {
  const MirlRows weight = a.weight->view();
  const int64_t inputs = weight.columns, outputs = weight.rows, panels = (a.tokens + WIDE * L - 1) / (WIDE * L);
  auto task = [&](int64_t t) {
    const int64_t first = t * WIDE * L, tokens = std::min(WIDE * L, a.tokens - first), n = (tokens + L - 1) / L;
    float *panel = mirl::scratch((inputs + L) * PANEL), *turned = panel + inputs * PANEL;
    for (int64_t c = 0; c < inputs; c += L)
      for (int64_t v = 0; v < n; ++v) {
        const int64_t some = std::min(L, tokens - v * L), channels = std::min(L, inputs - c);
        float* to = panel + c * PANEL + v * L;
        if (some < L)  // lanes without tokens are computed as well
          for (int64_t i = 0; i < channels; ++i) store(to + i * PANEL, Vec{});
        turn(a.x + (first + v * L) * a.x_token + c, a.x_token, to, PANEL, some, channels);
      }
    product(weight, panel, n, [&](int64_t r, int64_t begin, auto wide, const Vec* sums) {
      for (int v = 0; v < wide; ++v) store(turned + r % L * PANEL + (begin + v) * L, activated(sums[v], a.activation));
      if ((r + 1) % L && r + 1 < outputs) return;
      const int64_t c = r / L * L;
      for (int64_t v = begin; v < begin + wide; ++v)
        turn(turned + v * L, PANEL, a.y + (first + v * L) * a.y_token + c, a.y_token, std::min(L, outputs - c),
             std::min(L, tokens - v * L));
    });
  };
  mirl::parallel(panels, a.threads, task);
}

}  // namespace MIRL_ISA
