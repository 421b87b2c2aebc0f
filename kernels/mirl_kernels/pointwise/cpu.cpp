// Pointwise convolution, a row at a time in panels of pixels, gathered first: the input may have any strides.
#include "rows.h"

namespace MIRL_ISA {

void pointwise(const MirlPointwise& a) {
  constexpr int64_t chunk = 8 * L;
  const int64_t stride = padded(chunk), channels = a.size.channels, width = a.size.width;
  auto task = [&](int64_t t) {
    const int64_t b = t / a.size.height, y = t % a.size.height;
    float *in = mirl::scratch((channels + a.weight.rows) * stride), *out = in + channels * stride;
    for (int64_t x = 0; x < width; x += chunk) {
      const int64_t n = std::min(chunk, width - x), whole = round_up(n, L);
      for (int64_t c = 0; c < channels; ++c) {
        std::memcpy(in + c * stride, a.x.at(b, c, y, x), sizeof(float) * n);
        std::memset(in + c * stride + n, 0, sizeof(float) * (whole - n));
      }
      rows(a.weight, in, stride, out, stride, n, channels);
      for (int64_t r = 0; r < a.weight.rows; ++r) std::memcpy(a.y.at(b, r, y, x), out + r * stride, sizeof(float) * n);
    }
  };
  mirl::parallel(a.size.batch * a.size.height, a.threads, task);
}

}  // namespace MIRL_ISA
