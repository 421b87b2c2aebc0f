#include "mdta.h"

namespace MIRL_ISA {

void mdta(MirlMdta& a) {
  a.size = flattened(a.size);
  const Attention attention(a);
  const int64_t width = a.size.width, height = a.size.height;
  const int64_t step = std::max<int64_t>(1, PANEL / round_up(width, L)), steps = (height + step - 1) / step;
  auto task = [&](int64_t t) {
    const int64_t b = t / steps, y = t % steps * step;
    const std::vector<Place> all = places(std::min(step, height - y), width);
    float* scratch = mirl::scratch(attention.scratch_floats());
    grouped(all.size(), [&](int64_t first, int64_t n) {
      const Place* at = all.data() + first;
      const int64_t more = std::min<int64_t>(n, all.size() - first - n);
      const bool below = more == 0 && y + step < height && step == 1;
      attention.apply(b, y, 0, at, n, y + below, below ? all.data() : at + n, below ? n : more, scratch,
                      Residual(a.x, a.y, b, y, 0, at, n));
    });
  };
  mirl::parallel(a.size.batch * steps, a.threads, task);
}

}  // namespace MIRL_ISA
