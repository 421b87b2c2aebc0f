// Pointwise convolution, a row at a time in panels of pixels, gathered first: the input may have any strides.
#include "strips.h"

namespace MIRL_ISA {

void pointwise(MirlPointwise& a) {
  const MirlRows weight = a.weight->view();
  const int64_t channels = a.size.channels;
  const std::vector<Place> all = places(1, a.size.width);
  auto task = [&](int64_t t) {
    const int64_t b = t / a.size.height, y = t % a.size.height;
    float* panel = mirl::scratch(channels * PANEL);
    grouped(all.size(), [&](int64_t first, int64_t n) {
      const Place* at = all.data() + first;
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t v = 0; v < n; ++v) store(panel + c * PANEL + v * L, load(a.x.at(b, c, y, at[v].column), at[v]));
      const int64_t more = std::min<int64_t>(n, all.size() - first - n), below = std::min(y + 1, a.size.height - 1);
      Fetch next(a.x, b, channels, more ? y : below, 0, more ? at + n : all.data(), more ? more : n, weight.rows);
      product(weight, panel, n, [&](int64_t r, int64_t begin, auto width, const Vec* sums) {
        if (begin == 0) next.template share<0>();
        for (int64_t v = begin; v < begin + width; ++v) store(a.y.at(b, r, y, at[v].column), sums[v - begin], at[v]);
      });
    });
  };
  mirl::parallel(a.size.batch * a.size.height, a.threads, task);
}

}  // namespace MIRL_ISA
