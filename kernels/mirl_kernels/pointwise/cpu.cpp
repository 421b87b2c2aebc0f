// Pointwise convolution over panels of pixels, gathered first so that channels do not meet in one cache set.
#include "rows.h"

namespace MIRL_ISA {

void pointwise(const MirlPointwise& a) {
  const int64_t plane = a.size.height * a.size.width, chunk = 8 * L, chunks = (plane + chunk - 1) / chunk;
  const int64_t stride = padded(chunk), channels = a.size.channels;
  auto task = [&](int64_t t) {
    const int64_t b = t / chunks, p = t % chunks * chunk, n = std::min(chunk, plane - p);
    float *in = mirl::scratch((channels + a.weight.rows) * stride), *out = in + channels * stride;
    for (int64_t c = 0; c < channels; ++c) {
      std::memcpy(in + c * stride, a.x.data + b * a.x.stride + c * plane + p, sizeof(float) * n);
      std::memset(in + c * stride + n, 0, sizeof(float) * (chunk - n));
    }
    rows(a.weight, in, stride, out, stride, n, channels);
    for (int64_t r = 0; r < a.weight.rows; ++r)
      std::memcpy(a.y.data + b * a.y.stride + r * plane + p, out + r * stride, sizeof(float) * n);
  };
  mirl::parallel(a.size.batch * chunks, a.threads, task);
}

}  // namespace MIRL_ISA
